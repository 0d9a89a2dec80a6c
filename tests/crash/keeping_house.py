"""What may be forgotten goes, and nothing else: retention, and our tables themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from outbox_saga.brokers.contract import Refused
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable
from outbox_saga.ids import new_id
from outbox_saga.testing.invariants import Violation
from outbox_saga_migrations import check, current, downgrade, head, upgrade
from outbox_saga_relay.housekeeping import DAY, Housekeeping
from tests.crash.operation import Operation
from tests.crash.process import Process
from tests.crash.recording import RecordingPublisher
from tests.crash.relaying import publish_all
from tests.crash.tables import OURS
from tests.crash.world import Facts, World

AGES = 40 * DAY  # longer than every window
SOON = 1800.0


async def all_is_old(process: Process) -> None:
    """Long ago something was published, handled, refused and delayed; and just now, too."""
    publish_all(process, ("old 1", "one"), ("poison 2", "two"), ("old 3", "two"))
    one = process.new_relay(archive=True)
    while await one.run_once():
        pass
    await one.store.lease.release()
    publish_all(process, ("old 4", "one"), ("old 5", None))  # never published
    publish_all(process, ("late 6", None), delay=AGES)
    note = sa.insert(OURS.inbox)
    for name, age in (("crash.old", 0.0), ("crash.new", AGES)):
        for _ in range(3):
            now = process.database.clock.now(age)
            with process.database.begin() as connection:
                values = {"consumer": name, "message_id": new_id(), "body_hash": b"0" * 32}
                connection.execute(note.values(**values, handled_at=now))
    for _ in range(3):
        _what_is_over(process)
    process.let_time_pass(AGES)
    publish_all(process, ("new 7", "seven"))
    two = process.new_relay(archive=True)
    two.publisher = OnlyNew(process.world, process.points)
    for _ in range(8):
        await two.run_once()
    await two.store.lease.release()


def _what_is_over(process: Process) -> None:
    """A saga that has ended just now, and a command that was carried out."""
    now, id_ = process.database.clock.now(), new_id()
    values = {
        "source": "crash",
        "name": "over",
        "version": 1,
        "shape": "s",
        "input_hash": b"0" * 32,
    }
    values |= {"state": "completed", "revision": 1, "data": "{}", "progress": '{"steps": {}}'}
    values |= {"correlation_id": str(id_), "epoch": 1}
    moments = {"started_at": now, "updated_at": now, "ended_at": now}
    command = {"saga_id": id_, "step": "s", "generation": 0, "state": "done", "updated_at": now}
    with process.database.begin() as connection:
        connection.execute(sa.insert(OURS.saga).values(id=id_, **values, **moments))
        connection.execute(sa.insert(OURS.barrier).values(**command))


class OnlyNew(RecordingPublisher):
    """A broker that takes only what is new, so that what is old stays where it is."""

    def _refusal(self, envelope: Envelope) -> Refused | None:
        if b"new" in envelope.body:
            return None
        return Refused(BrokerUnavailable("not those", code="old"))


def _keeping(process: Process) -> Housekeeping:
    keeping = Housekeeping(
        process.database, saga_window=DAY, barrier_window=DAY, batch=2, pause=0.0
    )
    process.keep_house(keeping)
    return keeping


async def keep_house(process: Process) -> None:
    """A plan, and a round of it, when all windows are over."""
    if process.database.clock.shift < AGES:
        process.let_time_pass(AGES + SOON)
    keeping = _keeping(process)
    keeping.plan()
    await keeping.run_once()


def only_what_is_old(facts: Facts, world: World) -> list[Violation]:
    """I19, I3: past their windows things are gone; nothing else is, and nothing unpublished."""
    seen = [consumer for consumer, _ in facts.inbox]
    counts = {name: seen.count(name) for name in ("crash.old", "crash.new")}
    found = []
    if counts != {"crash.old": 0, "crash.new": 3}:
        found.append(Violation("I19", "inbox", f"notes left: {counts}"))
    with world.observer.connect() as connection:
        for table in (OURS.saga, OURS.barrier):
            left = connection.scalar(sa.select(sa.func.count()).select_from(table))
            if left:
                found.append(Violation("I19", table.name, f"{left} rows are left"))
    old = {b'{"word":"old 1"}': 0, b'{"word":"new 7"}': 1}
    for id_, body in facts.committed.items():
        if body in old and facts.messages.kept.get(id_, 0) != old[body]:
            told = f"kept {facts.messages.kept.get(id_, 0)} times, wanted {old[body]}"
            found.append(Violation("I19", f"message {body!r}", told))
    return found


# --- our tables ----------------------------------------------------------------------------------

Change = Callable[..., None]


def _bare(process: Process) -> Database:
    return process.adopt(Database(process.world.bare, pool_size=2))


def _none_of_ours(connection: sa.Connection) -> None:
    if (
        current(connection) is not None
        or OURS.outbox.name in sa.inspect(connection).get_table_names()
    ):
        upgrade(connection)  # what a run left half way, too
        downgrade(connection, force=True)


def before(change: Change | None, **options: Any) -> Any:
    """A database without our tables, or with those that this change makes."""

    async def prepare(process: Process) -> None:
        with _bare(process).begin() as connection:
            _none_of_ours(connection)
        if change is not None:
            with _bare(process).begin() as connection:
                change(connection, **options)

    return prepare


def changing(change: Change) -> Any:
    """The change on the sync engine."""

    async def run(process: Process) -> None:
        with _bare(process).begin() as connection:
            change(connection)

    return run


def changing_async(change: Change) -> Any:
    """The change on the async engine."""

    async def run(process: Process) -> None:
        async with _bare(process).async_engine.begin() as connection:
            await connection.run_sync(change)

    return run


def whole(_: Facts, world: World) -> list[Violation]:
    """I1: all our tables are there as they must be, and the version says so."""
    with world.bare_observer.connect() as connection:
        at, wrong = current(connection), check(connection)
    if at != head() or wrong:
        return [Violation("I1", "tables", f"at {at}: {'; '.join(map(str, wrong))}")]
    return []


def none_left(_: Facts, world: World) -> list[Violation]:
    """I1: none of our tables is there, nor a version."""
    with world.bare_observer.connect() as connection:
        left = [n for n in sa.inspect(connection).get_table_names() if n.startswith("outbox_saga")]
    return [Violation("I1", "tables", f"left: {left}")] if left else []


_up, _down = changing(upgrade), changing(downgrade)
MIGRATING = (
    Operation("db upgrade", before(None), _up, again=_up, check=whole),
    Operation(
        "db upgrade async",
        before(upgrade, revision="0001"),
        changing_async(upgrade),
        again=_up,
        check=whole,
        cancels=True,
    ),
    Operation("db downgrade", before(upgrade), _down, again=_down, check=none_left),
)
KEEPING_HOUSE = (
    Operation(
        "housekeeping",
        all_is_old,
        keep_house,
        again=keep_house,
        check=only_what_is_old,
        shift=AGES + SOON,
        cancels=True,
    ),
    *MIGRATING,
)
