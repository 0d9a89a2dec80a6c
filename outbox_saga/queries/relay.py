"""What the relay reads and removes; state decides, never a cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import delete_among, family
from outbox_saga.queries.outbox_rows import INLINE as INLINE  # noqa: PLC0414 - theirs who read pages
from outbox_saga.queries.outbox_rows import OutboxRow as OutboxRow  # noqa: PLC0414
from outbox_saga.queries.outbox_rows import delete_spelt_otherwise, rows_of
from outbox_saga.tables import PARTITIONS, Tables


@dataclass(frozen=True, slots=True)
class Failed:
    """One row that was not published.

    Args:
        row: Which.
        delay: Seconds until the next attempt; None when no attempt can help (dead letter).
        code: Short and stable.
        error: For people, without payload.
        skip: Its key goes on without it, once it is a dead letter.
        error_class: Of the error, as the publisher raised it.
    """

    row: OutboxRow
    delay: float | None
    code: str
    error: str
    skip: bool = False
    error_class: str | None = None

    @property
    def blocks(self) -> bool:
        """Whether later ones of its key, or it itself, must wait."""
        return self.delay is not None or (self.row.key is not None and not self.skip)


# --- the page ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows a page shall have: the oldest of these partitions, in position order.

    Args:
        partitions: Whose.
        limit: Rows.
        owner: No rows unless it holds leases of all these partitions as the statement runs. In the
            same statement, because one that was passed does not know which keys its successor
            has parked. None: everybody may look.
        above: Only positions above this one.
        upto: Only positions up to this one; None: any.
        unless_ended: Transactions, each with a floor: once one of them has ended, positions above
            its floor, too (PostgreSQL). In the same statement, because what is above `above` may
            have been written by somebody who waited for the end.
        known: Not these positions: the owner has them in memory.
        held: Not these keys.
        look_for_blocked: Leave out rows whose key waits or is parked. False when this owner knows
            that none of its keys is, which saves the look.
        due: The positions whose keys wait no longer, as this owner has been told: it reads above
            their lowest. Keys whose time comes later, be it before this statement, still wait,
            for what they wait for may be below `above`. None: by the clock, for those who read
            from the bottom.
        none_if_put_back: No rows while somebody has put one back that this owner has not been
            told of. In the same statement, because what waited behind it is free by the
            transaction that puts it back, and may be above `above` while it is below.
    """

    partitions: Sequence[int]
    limit: int
    owner: UUID | None = None
    above: int = 0
    upto: int | None = None
    known: Sequence[int] = ()
    held: Sequence[str] = ()
    look_for_blocked: bool = True
    due: Sequence[int] | None = None
    none_if_put_back: bool = False
    unless_ended: Mapping[int, int] = field(default_factory=dict)

    @property
    def lowest(self) -> int:
        """Nothing is wanted at or below this position, whoever has ended."""
        return min((self.above, *self.unless_ended.values()))


def page_statement(
    tables: Tables, clock: Clock, wanted: Wanted, *, arrays: bool = False
) -> sa.Select[Any]:
    """The rows that are wanted; its columns are the fields of `OutboxRow`.

    A body of more than `INLINE` bytes is NULL here.

    Args:
        arrays: Lists are bound as arrays, `:known`, `:held` and `:due` (PostgreSQL), so that one
            text serves all of them, and the server may hash them; also `:above` and `:limit`.
    """
    outbox = tables.outbox
    body = sa.case((sa.func.length(outbox.c.body) <= INLINE, outbox.c.body)).label("body")
    columns = [outbox.c[name] for name in OutboxRow._fields if name != "body"]
    above: Any = _above(wanted) if arrays else wanted.lowest
    limit: Any = sa.bindparam("limit", 0, type_=sa.Integer) if arrays else wanted.limit
    statement = sa.select(*columns, body).order_by(outbox.c.position).limit(limit)
    if wanted.lowest or arrays:
        statement = statement.where(outbox.c.position > above)
    if wanted.upto is not None:
        statement = statement.where(outbox.c.position <= wanted.upto)
    if wanted.known:
        known: Any = (
            outbox.c.position != sa.func.all(_array("known", sa.BigInteger()))
            if arrays
            else outbox.c.position.not_in(wanted.known)
        )
        statement = statement.where(known)
    if wanted.held:
        key = outbox.c.key
        held: Any = (
            key != sa.func.all(_array("held", sa.Text())) if arrays else key.not_in(wanted.held)
        )
        statement = statement.where(sa.or_(key.is_(None), held))
    return _restricted(statement, tables, clock, wanted, arrays=arrays)


def _above(wanted: Wanted) -> Any:
    above = sa.bindparam("above", 0, type_=sa.BigInteger)
    if not wanted.unless_ended:
        return above
    open_ = sa.func.unnest(_array("open", sa.BigInteger()), _array("floors", sa.BigInteger()))
    each = open_.table_valued("id", "floor", name="open_one").render_derived()
    # as of the statement's own snapshot, the one that its rows are seen by; null if none has ended
    has_ended = sa.func.pg_visible_in_snapshot(
        sa.cast(sa.cast(each.c.id, sa.Text), _Xid8), sa.func.pg_current_snapshot()
    )
    floor = sa.select(sa.func.min(each.c.floor)).where(has_ended).scalar_subquery()
    return sa.func.least(above, floor)


class _Xid8(sa.types.UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


def _array(name: str, kind: Any) -> Any:
    return sa.bindparam(name, None, type_=sa.ARRAY(kind))


def _restricted(
    statement: sa.Select[Any], tables: Tables, clock: Clock, wanted: Wanted, *, arrays: bool
) -> sa.Select[Any]:
    outbox, lease, all_of_them = tables.outbox, tables.partition_lease, range(PARTITIONS)
    some = len(wanted.partitions) < len(all_of_them)
    if wanted.owner is not None:
        leased = (
            sa.select(sa.func.count())
            .select_from(lease)
            .where(lease.c.owner == wanted.owner, lease.c.until > clock.now())
        )
        if wanted.none_if_put_back:
            leased = leased.where(lease.c.revisit.is_(None))
        if some:
            leased = leased.where(lease.c.partition.in_(wanted.partitions))
        statement = statement.where(leased.scalar_subquery() == len(wanted.partitions))
    if some:
        statement = statement.where(outbox.c.partition.in_(wanted.partitions))
    else:  # a row of none, written by others, could not be removed by anybody
        statement = statement.where(outbox.c.partition.between(0, PARTITIONS - 1))
    if wanted.look_for_blocked:
        statement = statement.where(~_is_blocked(tables, clock, wanted.due, arrays=arrays))
    return statement


def _is_blocked(
    tables: Tables, clock: Clock, due: Sequence[int] | None, *, arrays: bool
) -> sa.ColumnElement[bool]:
    outbox, blocked = tables.outbox, tables.blocked_key
    if due is None:
        waits: Any = sa.or_(blocked.c.until.is_(None), blocked.c.until > clock.now())
    elif arrays:
        waits = blocked.c.position != sa.func.all(_array("due", sa.BigInteger()))
    else:
        waits = blocked.c.position.not_in(due)
    found: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        blocked.c.partition == outbox.c.partition,
        # one equality, which the primary key serves: an OR here is tried with each blocked key
        # of the partition
        blocked.c.key == sa.func.coalesce(outbox.c.key, ""),
        sa.or_(outbox.c.key.is_not(None), blocked.c.position == outbox.c.position),
        waits,
    )
    if arrays:
        # PostgreSQL makes no join of it then. Joined, there is a moment for each backlog at which
        # its statistics make it hash all of the outbox, and sort it, for every page
        found = found.offset(sa.literal_column("0"))
    return found.exists()


def read_page(
    connection: sa.Connection, tables: Tables, clock: Clock, wanted: Wanted
) -> list[OutboxRow]:
    """The rows of `page_statement`."""
    return rows_of(connection, tables, page_statement(tables, clock, wanted))


def read_key(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    key: str,
    partition: int,
    wanted: Wanted,
) -> list[OutboxRow]:
    """As `read_page`, of one key only: its next rows above a position."""
    outbox = tables.outbox
    statement = page_statement(tables, clock, wanted).where(
        outbox.c.partition == partition, outbox.c.key == key
    )
    return rows_of(connection, tables, statement)


def body_sizes(
    connection: sa.Connection, tables: Tables, positions: Sequence[int]
) -> dict[int, int]:
    """The bytes of these rows' bodies; a row that is gone is not among them."""
    outbox = tables.outbox
    rows = connection.execute(
        sa.select(outbox.c.position, sa.func.length(outbox.c.body)).where(
            outbox.c.position.in_(positions)
        )
    )
    return {row[0]: row[1] for row in rows}


def bodies(
    connection: sa.Connection, tables: Tables, positions: Sequence[int]
) -> dict[int, bytes]:
    """These rows' bodies; a row that is gone is not among them."""
    outbox = tables.outbox
    body: Any = outbox.c.body
    if family(connection) == "sqlite":
        body = sa.cast(body, sa.LargeBinary)  # text, by whoever wrote it so
    rows = connection.execute(
        sa.select(outbox.c.position, body).where(outbox.c.position.in_(positions))
    )
    return {row[0]: row[1] for row in rows}


def anything_to_do(
    connection: sa.Connection, tables: Tables, clock: Clock, wanted: Wanted
) -> bool:
    """Whether a page would have a row, one was put back, or a key or a delayed message is due.

    One statement, for an idle relay, which shall ask no more than that.
    """
    one = sa.literal(1)
    looks = [page_statement(tables, clock, wanted).with_only_columns(tables.outbox.c.position)]
    looks.append(sa.select(one).where(tables.delayed.c.due_at <= clock.now()))
    if wanted.look_for_blocked:
        looks.append(_due(tables, clock, wanted.partitions).with_only_columns(one))
    if wanted.none_if_put_back:
        lease = tables.partition_lease
        looks.append(
            sa.select(one).where(lease.c.owner == wanted.owner, lease.c.revisit.is_not(None))
        )
    found = connection.execute(sa.select(sa.or_(*(look.exists() for look in looks))))
    return bool(found.scalar_one())


def delete_published(connection: sa.Connection, tables: Tables, rows: Sequence[OutboxRow]) -> int:
    """How many of these acknowledged rows were removed, by position AND id.

    Positions are used again by a promoted standby; a row is ours only if its id is, too.
    """
    outbox = tables.outbox
    if family(connection) == "postgresql":
        statement = sa.delete(outbox).where(
            outbox.c.position
            == sa.func.any(sa.bindparam("positions", type_=sa.ARRAY(sa.BigInteger))),
            outbox.c.id == sa.func.any(sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))),
        )
        values: dict[str, Any] = {
            "positions": [r.position for r in rows],
            "ids": [r.id for r in rows],
        }
        return connection.execute(statement, values).rowcount
    positions, ids = [r.position for r in rows], [r.id for r in rows]
    removed = connection.execute(
        delete_among(connection, outbox, position=positions, id=ids)
    ).rowcount
    if removed < len(rows):
        removed += delete_spelt_otherwise(connection, outbox, rows)
    return removed


# --- failures ------------------------------------------------------------------------------------


def _due(tables: Tables, clock: Clock, partitions: Sequence[int]) -> sa.Select[Any]:
    blocked = tables.blocked_key
    return sa.select(blocked.c.position).where(
        blocked.c.partition.in_(partitions), blocked.c.until <= clock.now()
    )


def due_positions(
    connection: sa.Connection, tables: Tables, clock: Clock, partitions: Sequence[int]
) -> list[int]:
    """The positions that blocked keys wait for whose time has come, by the database's clock."""
    return list(connection.scalars(_due(tables, clock, partitions)))


class Blocked(NamedTuple):
    """Why a key's rows stay where they are.

    Args:
        attempts: Failed ones of the row that it waits for.
        wait: Seconds until the next one; None: parked until somebody decides.
    """

    attempts: int
    wait: float | None


def blocked_rows(
    connection: sa.Connection, tables: Tables, clock: Clock, partitions: Sequence[int]
) -> dict[tuple[int, str, int], Blocked]:
    """The blocked keys of these partitions, by (partition, key, position)."""
    blocked = tables.blocked_key
    rows = connection.execute(
        sa.select(
            blocked.c.partition,
            blocked.c.key,
            blocked.c.position,
            blocked.c.attempts,
            blocked.c.until,
            clock.now().label("now"),
        ).where(blocked.c.partition.in_(partitions))
    )
    return {
        (r.partition, r.key, r.position): Blocked(
            r.attempts, None if r.until is None else (r.until - r.now).total_seconds()
        )
        for r in rows
    }


def unblock_gone(connection: sa.Connection, tables: Tables, positions: Sequence[int]) -> list[int]:
    """Of the positions that keys wait for, those that nobody will try again, being removed; the
    keys wait no longer. An owner before us had its ack after we were refused.
    """
    blocked, outbox = tables.blocked_key, tables.outbox
    waits = sa.and_(blocked.c.position.in_(positions), blocked.c.until.is_not(None))
    is_there = sa.exists().where(outbox.c.position == blocked.c.position)
    gone = list(connection.scalars(sa.select(blocked.c.position).where(waits, ~is_there)))
    if gone:
        statement = sa.delete(blocked).where(waits, blocked.c.position.in_(gone))
        connection.execute(statement)
    return gone


def pending(connection: sa.Connection, tables: Tables) -> int:
    """How many messages wait in the outbox."""
    return connection.execute(sa.select(sa.func.count()).select_from(tables.outbox)).scalar_one()


def oldest_age(
    connection: sa.Connection, tables: Tables, clock: Clock, above: int
) -> float | None:
    """Seconds since the first row above this position was written; None when there is none."""
    outbox = tables.outbox
    asked = (
        sa.select(outbox.c.created_at, clock.now().label("now"))
        .where(outbox.c.position > above)
        .order_by(outbox.c.position)
        .limit(1)
    )
    try:
        row = connection.execute(asked).first()
    except (AttributeError, TypeError, ValueError):  # others have written something else there
        return None
    return None if row is None else float((row.now - row.created_at).total_seconds())


def pid_of(connection: sa.Connection, transaction: int) -> int | None:
    """The server process of this open transaction (PostgreSQL); None when there is none.

    A prepared transaction has none, either; see pg_prepared_xacts.
    """
    pid: int | None = connection.execute(
        sa.text(
            "SELECT pid FROM pg_stat_activity WHERE backend_xid = "
            "CAST(CAST(CAST(:transaction AS text) AS xid8) AS xid)"
        ),
        {"transaction": str(transaction)},
    ).scalar()
    return pid
