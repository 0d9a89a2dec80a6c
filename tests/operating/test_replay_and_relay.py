"""Every order in which an operator's steps and a relay's can come, on real servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.dead_letters import DeadLetter, DeadLetters
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import SeenChanged
from outbox_saga.ids import new_id
from outbox_saga.queries import partitions
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.clock import DATABASE_CLOCK
from outbox_saga.queries.failures import store_failures
from outbox_saga.queries.outbox import partition_of, write_messages
from outbox_saga.queries.relay import Failed, OutboxRow, Wanted
from outbox_saga.tables import PARTITIONS
from outbox_saga.testing.interleaving import Play, Point, Run, explore
from tests.operating.yard import ADA
from tests.relay.house import House

pytestmark = pytest.mark.databases("postgres18", "mariadb")

OWNER = UUID(int=1)
HOME = partition_of("k", OWNER)
NEIGHBOUR = next(k for k in map(str, range(10_000)) if partition_of(k, OWNER) == HOME)


def least_steps(point: Point) -> bool:
    """Cuts where others could see or hold up something: before what locks or changes, and commits.

    Reading what is one's own, rollbacks of connections that are given back and `SET` are none.
    """
    if point.kind == "rollback":
        return False
    statement = point.statement.lstrip().upper()
    return not statement.startswith("SET")


class Stage:
    """Messages 1, 2 and 3 of one key; 1 is a dead letter, and its key is parked."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.database: Database = house.another_database()
        self.tables = house.tables
        self.letters = DeadLetters(self.database)
        self.published: list[str] = []
        self.refused: list[str] = []
        self.epochs: dict[int, int] = {}

    def begin(self) -> DeadLetter:
        """As it stands when the actors begin."""
        self.published, self.refused = [], []
        t = self.tables
        with self.database.begin() as connection:
            for table in (t.outbox, t.blocked_key, t.dead_letter, t.operator_action):
                connection.execute(sa.delete(table))
            for word in ("1", "2", "3"):
                envelope = Envelope(new_id(), "talk", "k", "Said", word.encode())
                write_messages(connection, t, [envelope])
            self.epochs = partitions.take_lease(connection, t, DATABASE_CLOCK, OWNER, 10_000.0)
        page = self._page()
        with self.database.begin() as connection:
            self._bury(connection, page[0])
        with self.database.begin() as connection:
            (letter,) = self.letters.find(connection)
        return letter

    def _page(self) -> list[OutboxRow]:
        with self.database.begin() as connection:
            wanted = Wanted(range(PARTITIONS), 10, OWNER)
            return verbs.read_page(connection, self.tables, DATABASE_CLOCK, wanted)

    def _bury(self, connection: sa.Connection, row: OutboxRow) -> None:
        failed = Failed(row, None, "too_large", "never")
        held = {HOME: self.epochs[HOME]}
        assert partitions.holds_lease(connection, self.tables, DATABASE_CLOCK, OWNER, held)
        store_failures(connection, self.tables, DATABASE_CLOCK, [(failed, 1)])

    def relay(self, passes: int, *, refuses: tuple[str, ...] = ()) -> Callable[[], None]:
        """Reads, publishes until something is refused, removes or buries; so many times."""

        def work() -> None:
            for _ in range(passes):
                acknowledged: list[OutboxRow] = []
                refused: OutboxRow | None = None
                for row in self._page():
                    word = row.body.decode()
                    if word in refuses and word not in self.refused:
                        self.refused.append(word)
                        refused = row
                        break  # what follows of its key stays where it is
                    self.published.append(word)
                    acknowledged.append(row)
                if acknowledged:
                    with self.database.begin() as connection:
                        verbs.delete_published(connection, self.tables, acknowledged)
                if refused is not None:
                    with self.database.begin() as connection:
                        self._bury(connection, refused)

        return work

    def operator(self, seen: DeadLetter, came: dict[str, Any], name: str) -> Callable[[], None]:
        """Replays the letter, and notes what came of it."""

        def work() -> None:
            try:
                with self.database.begin() as connection:
                    came[name] = self.letters.replay(connection, seen, ADA)
            except SeenChanged as error:
                came[name] = error

        return work

    def left(self) -> dict[str, list[str]]:
        """Where each message is that was not published."""
        rows = self.house.rows
        return {
            name: [row.body.decode() for row in rows(table, table.c.position)]
            for name, table in (
                ("waits", self.tables.outbox),
                ("dead", self.tables.dead_letter),
            )
        }

    def parked(self) -> list[int]:
        return [row.position for row in self.house.blocked()]


@pytest.fixture
def stage(house: House) -> Stage:
    return Stage(house)


def wrong_order(published: list[str]) -> str | None:
    first = list(dict.fromkeys(published))
    return None if first == sorted(first) else f"published in the order {published}"


@pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number")
async def test_a_replay_beside_a_relay_that_looks_twice_keeps_the_order(stage: Stage) -> None:
    def play() -> Play:
        seen, came = stage.begin(), dict[str, Any]()

        def check(run: Run) -> str | None:
            if run.errors:
                return f"errors: {run.errors}"
            stage.relay(3)()
            if isinstance(came["operator"], SeenChanged):
                return "the letter was there, and was not replayed"
            if set(stage.published) != {"1", "2", "3"} or any(stage.left().values()):
                return f"not all left: {stage.published}, {stage.left()}"
            return wrong_order(stage.published)

        actors = {"operator": stage.operator(seen, came, "operator"), "relay": stage.relay(2)}
        return Play(actors, check)

    found = explore(play, [stage.database.engine], steps=least_steps, preemptions=2)
    assert not found.problems, found.report()
    assert found.exhausted
    assert (found.deadlocks, found.schedules > 20) == (0, True), found.report()


@pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number")
async def test_a_relay_that_stores_a_failure_beside_a_replay_never_waits_in_a_circle(
    stage: Stage,
) -> None:
    """Both hold the lease of one partition; what dies again parks its key again."""

    def play() -> Play:
        seen, came = stage.begin(), dict[str, Any]()
        with stage.database.begin() as connection:
            envelope = Envelope(new_id(), "talk", NEIGHBOUR, "Said", b"poison")
            write_messages(connection, stage.tables, [envelope])

        def check(run: Run) -> str | None:
            if run.errors or run.deadlock:
                return f"errors: {run.errors}"
            left, parked = stage.left(), stage.parked()
            if not left["dead"] or len(parked) != len(left["dead"]):
                return f"every dead letter parks its key: {left}, {parked}"
            if "1" in stage.refused and ("1" not in left["dead"] or seen.position not in parked):
                return f"died again, and is not parked: {left}, {parked}"
            if "1" not in left["waits"] + left["dead"] + stage.published:
                return f"lost: {left}, {stage.published}"
            return wrong_order(stage.published)

        actors = {
            "operator": stage.operator(seen, came, "operator"),
            "relay": stage.relay(1, refuses=("1", "poison")),
        }
        return Play(actors, check)

    found = explore(play, [stage.database.engine], steps=least_steps, preemptions=2)
    assert not found.problems, found.report()
    assert (found.exhausted, found.deadlocks) == (True, 0)
    assert found.with_waits > 0, "nobody ever waited for the other: it was not tried"


@pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number")
async def test_two_operators_who_replay_one_letter_do_it_once(stage: Stage) -> None:
    def play() -> Play:
        seen, came = stage.begin(), dict[str, Any]()

        def check(run: Run) -> str | None:
            if run.errors:
                return f"errors: {run.errors}"
            refused = [name for name, it in came.items() if isinstance(it, SeenChanged)]
            if len(came) != 2 or len(refused) != 1:
                return f"one of two is told that it is gone: {came}"
            if stage.left() != {"waits": ["1", "2", "3"], "dead": []} or stage.parked():
                return f"left: {stage.left()}, parked {stage.parked()}"
            noted = len(stage.house.rows(stage.tables.operator_action))
            return None if noted == 1 else f"{noted} actions on record"

        actors = {name: stage.operator(seen, came, name) for name in ("ada", "grace")}
        return Play(actors, check)

    found = explore(play, [stage.database.engine], steps=least_steps, preemptions=2)
    assert not found.problems, found.report()
    assert (found.exhausted, found.deadlocks) == (True, 0)
    assert found.with_waits > 0, "nobody ever waited for the other: it was not tried"


@pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number")
async def test_an_unpark_that_comes_apart_from_the_row_is_found_out(stage: Stage) -> None:
    """What the one transaction is for: ended before the row is back, the park protects nothing."""

    def careless(seen: DeadLetter) -> Callable[[], None]:
        def work() -> None:
            blocked = stage.tables.blocked_key
            with stage.database.begin() as connection:
                connection.execute(sa.delete(blocked).where(blocked.c.position == seen.position))
            with stage.database.begin() as connection:
                stage.letters.replay(connection, seen, ADA)

        return work

    def play() -> Play:
        seen = stage.begin()

        def check(run: Run) -> str | None:
            stage.relay(3)()
            return wrong_order(stage.published)

        return Play({"careless": careless(seen), "relay": stage.relay(1)}, check)

    found = explore(play, [stage.database.engine], steps=least_steps, preemptions=2)
    assert found.problems, "the explorer does not see what it is there for"
