"""Our code with one rule about messages taken out, for each rule.

An explorer that has not caught a bug proves nothing. Each is planted in the code that services
and programs run, by putting another function in the place of one of ours.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import sqlalchemy as sa

from outbox_saga import commits, handling, inbox
from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.inbox import NOTHING
from outbox_saga.keeping import keep
from outbox_saga.lent_session import LentSession
from outbox_saga.queries import (
    dead_letter_actions,
    delayed,
    exchange,
    failures,
    partitions,
    pruning,
    waiting,
    waiting_operators,
)
from outbox_saga.queries.outbox import write_messages
from outbox_saga.queries.relay import delete_published
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrading
from outbox_saga_relay import store
from outbox_saga_relay.sending import Sending
from proofs.interleaved.rules import PassesAtOnce, nothing_is_blocked
from tests.crash import process
from tests.crash.operation import EVERYWHERE
from tests.crash.planted import PLANTED, SOUND, Code
from tests.crash.tables import OURS

Plant = Callable[[], AbstractContextManager[Any]]
By = Literal["crash", "cancel"]


@dataclass(frozen=True)
class Bug:
    """A rule that is broken, and who is to find it.

    Args:
        rule: What holds in our code and not in this one.
        operation: Where it shows.
        plant: Puts it in place for the time of a block.
        code: Or the classes that a process is made of.
        by: What finds it.
        databases: Where it can be: some rules hold by themselves on some.
    """

    rule: str
    operation: str
    plant: Plant = contextlib.nullcontext
    code: Code = SOUND
    by: By = "crash"
    databases: tuple[str, ...] = EVERYWHERE


def commit_here(connection: sa.Connection) -> None:
    """What follows is another transaction; whoever holds the connection does not know."""
    connection.dialect.do_commit(connection.connection)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def first_commits(where: Any, name: str) -> Plant:
    """This function finds that all before it is committed already."""

    def plant() -> Any:
        ours = getattr(where, name)

        def late(connection: sa.Connection, *args: Any, **options: Any) -> Any:
            commit_here(connection)
            return ours(connection, *args, **options)

        return patch.object(where, name, late)

    return plant


def instead(where: Any, name: str, other: Any) -> Plant:
    """Another function in the place of this one."""
    return lambda: patch.object(where, name, other)


# --- the write side ------------------------------------------------------------------------------


def _published_at_once(self: UnitOfWork[Any], envelope: Any, seconds: float = 0.0) -> None:
    """In a transaction of its own, whatever becomes of the caller's."""
    del seconds
    engine: sa.Engine = self.session.get_bind()
    with engine.begin() as connection:
        write_messages(connection, self.tables, [envelope])


# --- the relay -----------------------------------------------------------------------------------


def _accepts_whatever(self: Sending, row: Any, outcome: Any, *, lone_probe: bool) -> None:
    del outcome, lone_probe
    self._accept([row])


def _archives_afterwards(
    connection: sa.Connection, tables: Any, clock: Any, rows: Sequence[Any]
) -> int:
    outbox, archive = tables.outbox, tables.archive
    names = [c.name for c in archive.c if c.name != "published_at"]
    there = connection.execute(
        sa.select(*(outbox.c[n] for n in names)).where(outbox.c.id.in_([r.id for r in rows]))
    ).all()
    count = delete_published(connection, tables, rows)
    commit_here(connection)
    for row in there:
        values = {**row._mapping, "published_at": clock.now()}
        connection.execute(sa.insert(archive).values(**values))
    return count


@contextlib.contextmanager
def _archive_afterwards() -> Iterator[None]:
    with (
        patch.object(exchange, "can_exchange", lambda _: False),
        patch.object(store, "archive_published", _archives_afterwards),
    ):
        yield


# --- the inbox -----------------------------------------------------------------------------------


def inbox_first() -> Any:
    """The inbox row is committed before what its handler does."""
    ours: Any = vars(inbox)["note_arrival"]

    def note(connection: sa.Connection, *args: Any, **options: Any) -> Any:
        arrival = ours(connection, *args, **options)
        commit_here(connection)
        return arrival

    return patch.object(inbox, "note_arrival", note)


def count_not_looked_at() -> Any:
    """A repeat counts as new."""
    ours: Any = vars(inbox)["note_arrival"]

    def note(*args: Any, **options: Any) -> Any:
        arrival = ours(*args, **options)
        return "new" if arrival == "repeat" else arrival

    return patch.object(inbox, "note_arrival", note)


def _acknowledges_first() -> Any:
    ours: Any = vars(process)["answer"]

    async def answer(handling_: Any, consumer: str, delivery: Any) -> None:
        await delivery.acknowledge()
        await ours(handling_, consumer, delivery)

    return patch.object(process, "answer", answer)


async def _removed_before_handled(
    self: Any, handler: Any, envelope: Any, leased: Any, owner: Any
) -> None:
    await self._failures.unit(waiting.done, owner, leased)
    outcome = await self._attempts.make(handler, envelope, NOTHING)
    if not isinstance(outcome, str):
        delivered = keep(handler.consumer, envelope)
        await self._failures.store(delivered, outcome, handler, parks=handler.parks)


def _discards_without_note(connection: sa.Connection, tables: Any, clock: Any, seen: Any) -> Any:
    rows = tables.inbox_waiting
    connection.execute(sa.delete(rows).where(rows.c.position == seen.position))
    if seen.key is not None:
        waiting.wake(connection, tables, clock, seen.consumer, seen.key)
    return waiting.Delivered(seen.consumer, seen.message_id, seen.topic, seen.key, "{}", b"")


# --- people, and time ----------------------------------------------------------------------------


def _unparks_first() -> Any:
    ours = dead_letter_actions._insert

    def insert(connection: sa.Connection, tables: Any, seen: Any, headers: str) -> None:
        dead_letter_actions._unpark_at(
            connection, tables, seen.partition, seen.key or "", [seen.position]
        )
        dead_letter_actions.look_again_from(connection, tables, seen.partition, seen.position)
        commit_here(connection)
        ours(connection, tables, seen, headers)

    return patch.object(dead_letter_actions, "_insert", insert)


def _replays_with_new_id() -> Any:
    ours = dead_letter_actions._insert

    def insert(connection: sa.Connection, tables: Any, seen: Any, headers: str) -> None:
        ours(connection, tables, seen, headers)
        outbox = tables.outbox
        mine = outbox.c.position == seen.position
        connection.execute(sa.update(outbox).where(mine).values(id=new_id()))

    return patch.object(dead_letter_actions, "_insert", insert)


def _prunes_by_age() -> Any:
    ours = pruning.prune_inbox

    def prune(
        connection: sa.Connection, tables: Any, clock: Any, window: float, limit: int
    ) -> int:
        outbox = tables.outbox
        old = outbox.c.created_at < clock.now(-window)
        connection.execute(sa.delete(outbox).where(old))
        return ours(connection, tables, clock, window, limit)

    return patch.object(pruning, "prune_inbox", prune)


def _half_is_whole(connection: sa.Connection, *_: Any) -> bool:
    return sa.inspect(connection).has_table(OURS.outbox.name)


# --- cancellations -------------------------------------------------------------------------------


@asynccontextmanager
async def lends_for_ever(self: Database) -> AsyncIterator[Any]:
    """As `lend_async`, but whoever is cancelled takes the connection along."""
    from sqlalchemy.ext.asyncio import AsyncSession

    options: dict[str, Any] = {"expire_on_commit": False, "close_resets_only": False}
    session = AsyncSession(self.async_engine, sync_session_class=LentSession, **options)
    try:
        yield session
    except BaseException:
        vars(self).setdefault("kept", []).append(session)
        raise
    lent: Any = session.sync_session
    await session.run_sync(lambda _: lent.give_back())


BUGS = {
    bug.rule: bug
    for bug in (
        Bug(
            "published, then removed",
            "relay to a broker",
            code=PLANTED["mark before publish"],
        ),
        Bug(
            "business rows and messages commit together",
            "publish sync",
            first_commits(sys.modules["outbox_saga.unit_of_work"], "write_messages"),
        ),
        Bug(
            "what is rolled back never leaves",
            "publish kinds sync",
            instead(UnitOfWork, "keep_sealed", _published_at_once),
            databases=("postgres18", "mariadb"),  # SQLite's one writer would wait for itself
        ),
        Bug(
            "removed only if the broker took it",
            "relay refusals",
            instead(Sending, "_settle", _accepts_whatever),
        ),
        Bug(
            "a refused key waits",
            "relay refusals",
            nothing_is_blocked,
        ),
        Bug(
            "a dead letter is made where it is removed",
            "relay refusals",
            first_commits(failures, "delete_published"),
        ),
        Bug(
            "whoever lost the lease writes nothing",
            "relay hand-over",
            instead(partitions, "holds_lease", lambda *_: True),
        ),
        Bug(
            "the mark waits for whoever has not committed",
            "relay late commit",
            instead(store, "Mark", PassesAtOnce),
            databases=("postgres18",),  # the only one with a mark
        ),
        Bug(
            "archived by the transaction that removes",
            "relay and archive",
            _archive_afterwards,
        ),
        Bug(
            "a delayed message enters once",
            "relay delayed",
            first_commits(delayed, "_remove"),
        ),
        Bug("inbox row and effect commit together", "handle", inbox_first),
        Bug("a repeat is told by the row count", "handle", count_not_looked_at),
        Bug("acknowledged after the commit", "consume", _acknowledges_first),
        Bug(
            "a waiting message goes with its effect",
            "retry of waiting",
            instead(handling.Handling, "_retry", _removed_before_handled),
        ),
        Bug(
            "what is discarded counts as handled",
            "waiting discard",
            instead(waiting_operators, "discard", _discards_without_note),
        ),
        Bug("unparked by what puts it back", "dead letter replay", _unparks_first),
        Bug("a replay keeps its id", "dead letter replay", _replays_with_new_id),
        Bug(
            "a replay and its record commit together",
            "dead letter replay",
            first_commits(dead_letter_actions, "note_action"),
        ),
        Bug(
            "a discard and its record commit together",
            "dead letter discard",
            first_commits(dead_letter_actions, "note_action"),
        ),
        Bug("what was not published is never pruned", "housekeeping", _prunes_by_age),
        Bug(
            "half an upgrade is finished",
            "db upgrade",
            instead(upgrading, "reached", _half_is_whole),
            databases=("mariadb",),  # elsewhere it is one transaction
        ),
        Bug(
            "a commit that was cancelled is unknown",
            "publish kinds async",
            instead(commits, "what_was_written", lambda _: []),
            by="cancel",
        ),
        Bug(
            "whoever is cancelled gives the connection back",
            "handle",
            instead(Database, "lend_async", lends_for_ever),
            by="cancel",
        ),
        Bug(
            "a cancellation is no failure of the handler",
            "handle",
            instead(handling, "_asked_to_end", lambda: False),
            by="cancel",
        ),
    )
}
