"""What was published, for as long as it may be replayed: kept by the statement that removes it
from the outbox, and put back as new messages with old ids.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.envelopes import Envelope, replays_of
from outbox_saga.ids import lowest_id
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import family, for_update
from outbox_saga.queries.outbox import write_messages
from outbox_saga.queries.relay import OutboxRow, delete_published
from outbox_saga.tables import Tables

_COPIED = ("id", "position", "partition", "topic", "key", "headers", "body", "created_at")
_INTO = ["published_at", *_COPIED]


@dataclass(frozen=True, slots=True)
class Published:
    """Which of what was published; what is None says nothing.

    Args:
        topic: Of this topic.
        key: Of this key.
        since: Published at this moment or later.
        until: Published before this moment.
    """

    topic: str | None = None
    key: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None


EVERYTHING = Published()


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the archive holds of one topic.

    Args:
        forgotten: Of them, those whose handling a consumer's inbox may have forgotten.
    """

    topic: str
    count: int
    first: dt.datetime
    last: dt.datetime
    forgotten: int


class Place(NamedTuple):
    """How far a replay has come: a moment of publication, and a position published then."""

    published_at: dt.datetime
    position: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction of a replay did.

    Args:
        sent: Messages that are in the outbox again.
        waiting: Messages that were left out, because they wait in the outbox or are dead letters.
        last: Where the last one stands; None when nothing is left.
    """

    sent: int
    waiting: int
    last: Place | None


# --- what the relay calls ------------------------------------------------------------------------


def archiving_statement(tables: Tables, clock: Clock) -> sa.Insert:
    """PostgreSQL: moves acknowledged rows from the outbox to the archive in one statement, by
    position AND id. Its parameters are `positions` and `ids`, two arrays.

    One reading of the clock for all of them: within it the positions say what came first.
    """
    outbox, archive = tables.outbox, tables.archive
    gone = (
        sa.delete(outbox)
        .where(
            outbox.c.position
            == sa.func.any(sa.bindparam("positions", type_=sa.ARRAY(sa.BigInteger))),
            outbox.c.id == sa.func.any(sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))),
        )
        .returning(*(outbox.c[name] for name in _COPIED))
        .cte("gone")
    )
    moment = sa.select(clock.now()).scalar_subquery()
    return (
        sa.insert(archive)
        .from_select(_INTO, sa.select(moment, *(gone.c[name] for name in _COPIED)))
        .add_cte(gone)
        .execution_options(preserve_rowcount=True)  # of an INSERT SQLAlchemy forgets it otherwise
    )


def archive_published(
    connection: sa.Connection, tables: Tables, clock: Clock, rows: Sequence[OutboxRow]
) -> int:
    """How many of these acknowledged rows were removed, each into the archive, by position AND id.

    Instead of `delete_published`. A row that somebody else removed was archived by them.
    """
    outbox, archive = tables.outbox, tables.archive
    if family(connection) == "postgresql":
        values: dict[str, Any] = {
            "positions": [r.position for r in rows],
            "ids": [r.id for r in rows],
        }
        return connection.execute(archiving_statement(tables, clock), values).rowcount
    source = sa.select(clock.now(), *(outbox.c[name] for name in _COPIED)).where(
        outbox.c.position.in_([r.position for r in rows]),
        outbox.c.id.in_([r.id for r in rows]),
    )
    # locked while they are copied: an overlapping owner would keep a second copy
    connection.execute(sa.insert(archive).from_select(_INTO, for_update(connection, source)))
    return delete_published(connection, tables, rows)


# --- looking -------------------------------------------------------------------------------------


def _where(tables: Tables, wanted: Published) -> list[sa.ColumnElement[bool]]:
    archive = tables.archive
    found: list[sa.ColumnElement[bool]] = []
    if wanted.topic is not None:
        found.append(archive.c.topic == wanted.topic)
    if wanted.key is not None:
        found.append(archive.c.key == wanted.key)
    if wanted.since is not None:
        found.append(archive.c.published_at >= wanted.since)
    if wanted.until is not None:
        found.append(archive.c.published_at < wanted.until)
    return found


def count_published(
    connection: sa.Connection,
    tables: Tables,
    wanted: Published = EVERYTHING,
    *,
    forgotten_before: dt.datetime | None = None,
) -> list[Stretch]:
    """How much the archive holds of each topic.

    Args:
        forgotten_before: Inboxes may have forgotten what they handled before this moment.
    """
    archive = tables.archive
    old: Any = sa.literal(0)
    if forgotten_before is not None:
        # a copy that inboxes dropped was handled when its message first came
        first_came_before = archive.c.id < lowest_id(forgotten_before)
        forgotten = sa.or_(
            archive.c.published_at < forgotten_before,
            sa.and_(_is_copy(tables), first_came_before),
        )
        old = sa.case((forgotten, 1), else_=0)
    statement = (
        sa.select(
            archive.c.topic,
            sa.func.count().label("messages"),
            sa.func.min(archive.c.published_at).label("first"),
            sa.func.max(archive.c.published_at).label("last"),
            sa.func.sum(old).label("forgotten"),
        )
        .where(*_where(tables, wanted))
        .group_by(archive.c.topic)
        .order_by(archive.c.topic)
    )
    return [
        Stretch(r.topic, r.messages, r.first, r.last, int(r.forgotten))
        for r in connection.execute(statement)
    ]


def has_copies(connection: sa.Connection, tables: Tables, wanted: Published) -> bool:
    """Whether what matches has been replayed before, all or some of it."""
    copy = sa.select(sa.literal(1)).where(*_where(tables, wanted), _is_copy(tables)).limit(1)
    return connection.execute(copy).first() is not None


def _is_copy(tables: Tables) -> sa.ColumnElement[bool]:
    return tables.archive.c.headers.contains('"replay":', autoescape=True)


# --- putting back --------------------------------------------------------------------------------


def send_again(
    connection: sa.Connection,
    tables: Tables,
    wanted: Published,
    *,
    after: Place | None = None,
    limit: int = 100,
    copies: bool = True,
) -> Batch:
    """The next messages are in the outbox again, under their own ids, each counted as a replay.

    In the order in which they were published, at the end of the outbox, under the locks of their
    keys. One that waits there, or is a dead letter, is left out: two rows of one id could become
    two dead letters of it.

    Args:
        after: Where the last one of the batch before stands.
        limit: Messages.
        copies: What matches may be there twice, for it was replayed before: it goes at the place
            of its first copy. False saves looking through the archive for others.
    """
    archive = tables.archive
    where = _where(tables, wanted)
    if after is not None:
        where.append(archive.c.published_at >= after.published_at)
        where.append(
            sa.or_(
                archive.c.published_at > after.published_at, archive.c.position > after.position
            )
        )
    moments = sa.select(archive.c.published_at).where(*where).order_by(archive.c.published_at)
    # the primary key has moments in order, not positions: bounded before it is sorted by both
    last = connection.execute(moments.limit(1).offset(limit - 1)).scalar_one_or_none()
    if last is not None:
        where.append(archive.c.published_at <= last)
    found = connection.execute(
        sa.select(archive)
        .where(*where)
        .order_by(archive.c.published_at, archive.c.position)
        .limit(limit)
    ).all()
    if not found:
        return Batch(0, 0, None)
    known = _copies(connection, tables, wanted, found) if copies else {}
    rows = [
        row for row in found if known.get(row.id, (row.published_at, 0))[0] == row.published_at
    ]
    waiting = _waiting(connection, tables, [row.id for row in rows])
    envelopes: list[Envelope] = []
    for row in rows:
        if row.id not in waiting:
            envelope = Envelope.from_row(row.id, row.topic, row.key, row.headers, row.body)
            replays = max(envelope.replay, known[row.id][1] if row.id in known else 0)
            envelopes.append(replace(envelope, replay=replays + 1))
    if envelopes:
        write_messages(connection, tables, envelopes)
    return Batch(len(envelopes), len(waiting), Place(found[-1].published_at, found[-1].position))


def _copies(
    connection: sa.Connection, tables: Tables, wanted: Published, found: Sequence[sa.Row[Any]]
) -> dict[UUID, tuple[dt.datetime, int]]:
    """When each of these messages was published first, as far as that matches, and how often it
    was replayed before its last copy was published, whether that one matches or not: a broker
    that drops repeats of an id would take another with its count for a repeat.
    """
    archive = tables.archive
    since_then = _where(
        tables, Published(since=wanted.since)
    )  # copies come after what they are of
    statement = (
        sa.select(archive.c.id, archive.c.published_at, archive.c.headers)
        .where(*since_then, archive.c.id.in_([row.id for row in found]))
        .order_by(archive.c.published_at)
    )
    known: dict[UUID, tuple[dt.datetime, int]] = {}
    for row in connection.execute(statement):
        first, replays = known.get(row.id, (row.published_at, 0))
        known[row.id] = first, max(replays, replays_of(row.headers))
    return known


def _waiting(connection: sa.Connection, tables: Tables, ids: list[UUID]) -> set[UUID]:
    """Those of these ids that stand in the outbox or among the dead letters.

    In one statement: between two, a dead letter could have been put back.
    """
    outbox, letter = tables.outbox, tables.dead_letter
    return set(
        connection.scalars(
            sa.select(outbox.c.id)
            .where(outbox.c.id.in_(ids))
            .union_all(sa.select(letter.c.id).where(letter.c.id.in_(ids)))
        )
    )
