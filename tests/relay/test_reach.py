"""Proof 2.7 leaves out schedules that come to the same as one it tries. Here none is left out.

Small plays of the same actors are tried in every order of their steps there is, and then in those
orders only that `proofs.interleaved.reach` leaves: both come to the same ends, what relays have in
memory included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import REGCLASS

from outbox_saga.testing.interleaving import Exploration, Play, Point, Reach, Run, explore
from outbox_saga.testing.servers import Postgres18
from proofs.interleaved.stage import WAIT, Broker, RelayActor, Stage, stage_on
from tests.fixtures.services import PrivateServer

Actors = dict[str, Callable[[], object]]
Begin = Callable[[Stage], tuple[Actors, list[RelayActor]]]


pytestmark = pytest.mark.needs_a_session(
    "the explorer asks the server who waits, by a session's number"
)


@pytest.fixture
def on(private_server: PrivateServer) -> Iterator[Stage]:
    with stage_on(private_server(Postgres18)) as there:
        yield there


# --- plays ---------------------------------------------------------------------------------------


def two_writers_of_one_key_and_a_relay(on: Stage) -> tuple[Actors, list[RelayActor]]:
    on.fresh()
    relay = on.relay()
    relay.begins()
    writers = {"writer1": on.writer(("k", "one")), "writer2": on.writer(("k", "two"))}
    return {**writers, "relay": relay.passes(1)}, [relay]


def a_writer_and_a_relay_that_removes_what_it_has_sent(
    on: Stage,
) -> tuple[Actors, list[RelayActor]]:
    on.fresh()
    relay = on.relay()
    relay.begins()
    on.writer(("x", "before"))()
    relay.one_pass()
    return {"writer": on.writer(("k", "one")), "relay": relay.passes(1)}, [relay]


def writers_of_two_keys_and_a_relay_that_removes_what_it_has_sent(
    on: Stage,
) -> tuple[Actors, list[RelayActor]]:
    actors, relays = a_writer_and_a_relay_that_removes_what_it_has_sent(on)
    return {**actors, "another": on.writer(("j", "two"))}, relays


def a_writer_and_a_relay_that_is_refused_as_time_goes_on(
    on: Stage,
) -> tuple[Actors, list[RelayActor]]:
    on.fresh(Broker(not_now=frozenset({"n1"})))
    relay = on.relay()
    relay.begins()
    on.writer(("n", "n1"))()
    actors: Actors = {
        "writer": on.writer(("n", "n2")),
        "relay": relay.passes(1),
        "time": on.time(2 * WAIT),
    }
    return actors, [relay]


def an_operator_who_replays_and_a_relay(on: Stage) -> tuple[Actors, list[RelayActor]]:
    on.fresh(Broker(never=frozenset({"one"})))
    relay = on.relay()
    relay.begins()
    on.writer(("k", "one"), ("k", "two"))()
    relay.one_pass()
    on.writer(("x", "x1"))()
    relay.one_pass()
    return {"operator": on.operator(), "relay": relay.passes(1)}, [relay]


def a_relay_that_removes_and_its_successor_that_is_refused(
    on: Stage,
) -> tuple[Actors, list[RelayActor]]:
    on.fresh(Broker(never=frozenset({"one"})))
    first, second = on.relay(), on.relay()
    first.begins()
    on.writer(("k", "one"), ("k", "two"))()
    on.broker.refused.append("one")
    first.one_pass()  # has sent both, and removed neither
    on.broker.refused.clear()
    on.advance(3e6)
    second.begins()
    return {"relay1": first.passes(1), "relay2": second.passes(1)}, [first, second]


# --- what they come to ---------------------------------------------------------------------------


def ends(on: Stage, begin: Begin, *, reduced: bool) -> tuple[Exploration, set[str]]:
    """How many schedules there were, and how they ended."""
    found: set[str] = set()

    def play() -> Play:
        actors, relays = begin(on)
        lowest = latest_position(on)

        def check(run: Run) -> None:
            assert not run.errors, run.report()
            found.add(repr((memory(relays, lowest), end(on, lowest))))

        return Play(on.play(actors, relays[0]).actors, check)

    def every_step_matters(point: Point) -> Reach | None:
        reach = on.reaches(point)
        return None if reach else reach

    explored = explore(play, on.engines, reach=on.reaches if reduced else every_step_matters)
    assert explored.exhausted
    return explored, found


def latest_position(on: Stage) -> int:
    """The last one that was given out before the play began."""
    with on.engine.connect() as connection:
        sequence = sa.func.pg_get_serial_sequence(on.tables.outbox.name, "position")
        position: int = connection.execute(
            sa.select(sa.func.coalesce(sa.func.pg_sequence_last_value(sequence.cast(REGCLASS)), 0))
        ).scalar_one()
        return position


def end(on: Stage, lowest: int) -> object:
    """What is in the tables and at the broker; places are counted from the play's beginning."""
    ended = on.ended()
    with on.engine.connect() as connection:
        rows = connection.execute(sa.select(on.tables.outbox).order_by("position")).all()
    by_key: dict[str, list[str]] = {}
    for key, word in ended.committed:
        by_key.setdefault(key, []).append(word)
    return (
        sorted(by_key.items()),
        ended.accepted,
        ended.left,
        [row.position - lowest for row in rows],
        sorted((place - lowest, word) for place, word in ended.dead.items()),
        [
            (row.key, row.position - lowest, row.attempts, row.until is None)
            for row in ended.blocked
        ],
    )


def memory(relays: list[RelayActor], lowest: int) -> object:
    """What each relay knows and would do next."""
    return [
        (
            relay.store.mark.position - lowest if relay.store.mark.position else None,
            [(seen.highest - lowest, seen.after is None) for seen in relay.store.mark._seen],
            sorted(floor and floor - lowest for floor in relay.store.mark.open.values()),
            sorted((key, place - lowest) for _, key, place in relay.store.blocked._keys),
            [row.position - lowest for row in relay._acknowledged],
            relay._again is None,
            relay.store.lease.removed,
            len(relay.store.lease.epochs),
        )
        for relay in relays
    ]


QUICK = (
    a_writer_and_a_relay_that_removes_what_it_has_sent,
    two_writers_of_one_key_and_a_relay,
    a_writer_and_a_relay_that_is_refused_as_time_goes_on,
)
LONG = (
    writers_of_two_keys_and_a_relay_that_removes_what_it_has_sent,
    an_operator_who_replays_and_a_relay,
    a_relay_that_removes_and_its_successor_that_is_refused,
)


def compare(on: Stage, begin: Begin) -> None:
    few, reached = ends(on, begin, reduced=True)
    every, there_are = ends(on, begin, reduced=False)
    assert reached == there_are, f"{few.schedules} of {every.schedules} schedules"
    assert few.schedules < every.schedules


@pytest.mark.parametrize("begin", QUICK)
def test_the_orders_that_are_tried_come_to_all_that_any_order_comes_to(
    on: Stage, begin: Begin
) -> None:
    compare(on, begin)


@pytest.mark.parametrize("begin", LONG)
def test_so_do_those_of_longer_plays(on: Stage, begin: Begin, soak: bool) -> None:
    if not soak:
        pytest.skip("thousands of schedules: ./dev soak")
    compare(on, begin)


def test_a_step_whose_reach_is_not_told_makes_ends_go_missing(
    on: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = a_writer_and_a_relay_that_is_refused_as_time_goes_on
    _, there_are = ends(on, begin, reduced=False)
    monkeypatch.setattr(on.reaches, "_of_all", lambda _: frozenset())
    _, reached = ends(on, begin, reduced=True)
    assert reached < there_are
