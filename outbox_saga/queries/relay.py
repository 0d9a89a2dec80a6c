"""What the relay reads and removes; state decides, never a cursor."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.envelopes import Envelope
from outbox_saga.payloads import storable
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import family, for_update
from outbox_saga.tables import PARTITIONS, Tables

MAX_ERROR = 2000  # characters of an error that are kept


class OutboxRow(NamedTuple):
    """One row of the outbox, not yet opened."""

    position: int
    id: UUID
    partition: int
    topic: str
    key: str | None
    headers: str
    body: bytes

    def envelope(self) -> Envelope:
        """The message as it was committed."""
        return Envelope.from_row(self.id, self.topic, self.key, self.headers, self.body)


@dataclass(frozen=True, slots=True)
class Failed:
    """One row that was not published.

    Args:
        row: Which.
        delay: Seconds until the next attempt; None when no attempt can help (dead letter).
        code: Short and stable.
        error: For people, without payload.
    """

    row: OutboxRow
    delay: float | None
    code: str
    error: str


# --- leases --------------------------------------------------------------------------------------


def take_lease(
    connection: sa.Connection, tables: Tables, clock: Clock, owner: UUID, seconds: float
) -> dict[int, int]:
    """The partitions this owner holds now, with their epochs.

    Those nobody holds are taken first.
    """
    lease = tables.partition_lease
    connection.execute(
        sa.update(lease)
        .where(
            sa.or_(lease.c.until.is_(None), lease.c.until < clock.now(), lease.c.owner == owner)
        )
        .values(owner=owner, epoch=lease.c.epoch + 1, until=clock.now(seconds))
    )
    rows = connection.execute(
        sa.select(lease.c.partition, lease.c.epoch).where(
            lease.c.owner == owner, lease.c.until > clock.now()
        )
    )
    return {row.partition: row.epoch for row in rows}


def renew_lease(
    connection: sa.Connection, tables: Tables, clock: Clock, owner: UUID, seconds: float
) -> int:
    """How many partitions this owner still held and holds on to."""
    lease = tables.partition_lease
    return connection.execute(
        sa.update(lease)
        .where(lease.c.owner == owner, lease.c.until > clock.now())
        .values(until=clock.now(seconds))
    ).rowcount


def release_lease(connection: sa.Connection, tables: Tables, owner: UUID) -> None:
    """Nothing is leased by this owner any more; a successor need not wait."""
    lease = tables.partition_lease
    connection.execute(
        sa.update(lease).where(lease.c.owner == owner).values(owner=None, until=None)
    )


def holds_lease(
    connection: sa.Connection, tables: Tables, clock: Clock, owner: UUID, epochs: dict[int, int]
) -> bool:
    """True when all these partitions are still this owner's, of these epochs.

    Locks them until the transaction ends.
    """
    lease = tables.partition_lease
    found = connection.execute(
        for_update(
            connection,
            sa.select(lease.c.partition, lease.c.epoch)
            .where(
                lease.c.partition.in_(sorted(epochs)),
                lease.c.owner == owner,
                lease.c.until > clock.now(),
            )
            .order_by(lease.c.partition),
        )
    )
    return {row.partition: row.epoch for row in found} == epochs


# --- the page ------------------------------------------------------------------------------------


def page_statement(
    tables: Tables,
    clock: Clock,
    partitions: Sequence[int],
    limit: int,
    *,
    look_for_blocked: bool,
    owner: UUID | None = None,
) -> sa.Select[Any]:
    """The oldest rows of these partitions in position order, without those whose key waits or is
    parked. Its columns are the fields of `OutboxRow`.

    Args:
        limit: Rows.
        look_for_blocked: False when this owner knows that none of its keys is blocked, which saves
            the look.
        owner: No rows unless it holds a lease as the statement runs. In the same statement,
            because one that was passed does not know which keys its successor has parked.
    """
    outbox, blocked, lease = tables.outbox, tables.blocked_key, tables.partition_lease
    statement = (
        sa.select(*(outbox.c[name] for name in OutboxRow._fields))
        .order_by(outbox.c.position)
        .limit(limit)
    )
    if owner is not None:
        statement = statement.where(
            sa.exists().where(lease.c.owner == owner, lease.c.until > clock.now())
        )
    if len(partitions) < PARTITIONS:
        statement = statement.where(outbox.c.partition.in_(partitions))
    if look_for_blocked:
        statement = statement.where(
            ~sa.exists().where(
                blocked.c.partition == outbox.c.partition,
                sa.or_(
                    blocked.c.key == outbox.c.key,
                    sa.and_(
                        outbox.c.key.is_(None),
                        blocked.c.key == "",
                        blocked.c.position == outbox.c.position,
                    ),
                ),
                sa.or_(blocked.c.until.is_(None), blocked.c.until > clock.now()),
            )
        )
    return statement


def read_page(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    partitions: Sequence[int],
    limit: int,
    *,
    look_for_blocked: bool,
    owner: UUID | None = None,
) -> list[OutboxRow]:
    """The rows of `page_statement`."""
    statement = page_statement(
        tables, clock, partitions, limit, look_for_blocked=look_for_blocked, owner=owner
    )
    return [OutboxRow._make(row) for row in connection.execute(statement)]


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
    return connection.execute(
        sa.delete(outbox).where(
            outbox.c.position.in_([r.position for r in rows]),
            outbox.c.id.in_([r.id for r in rows]),
        )
    ).rowcount


# --- failures ------------------------------------------------------------------------------------


def blocked_rows(
    connection: sa.Connection, tables: Tables, partitions: Sequence[int]
) -> dict[tuple[int, str, int], int]:
    """The blocked keys of these partitions as (partition, key, position), and their attempts."""
    blocked = tables.blocked_key
    rows = connection.execute(
        sa.select(
            blocked.c.partition, blocked.c.key, blocked.c.position, blocked.c.attempts
        ).where(blocked.c.partition.in_(partitions))
    )
    return {(r.partition, r.key, r.position): r.attempts for r in rows}


def unblock(connection: sa.Connection, tables: Tables, row: OutboxRow) -> None:
    """The key of this row no longer waits for it."""
    blocked = tables.blocked_key
    connection.execute(
        sa.delete(blocked).where(
            blocked.c.partition == row.partition,
            blocked.c.key == (row.key or ""),
            blocked.c.position == row.position,
        )
    )


def block(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    failed: Failed,
    attempts: int,
    *,
    parked: bool,
) -> None:
    """The key of this row waits for it, or is parked.

    Later ones of the key stay where they are.
    """
    unblock(connection, tables, failed.row)
    connection.execute(
        sa.insert(tables.blocked_key).values(
            partition=failed.row.partition,
            key=failed.row.key or "",
            position=failed.row.position,
            until=None if parked else clock.now(failed.delay or 0.0),
            attempts=attempts,
            error_code=failed.code,
            error=storable(failed.error, MAX_ERROR),
        )
    )


def still_there(connection: sa.Connection, tables: Tables, row: OutboxRow) -> bool:
    """Whether the row waits in the outbox; an owner before us may have had its ack meanwhile."""
    outbox = tables.outbox
    return bool(
        connection.execute(
            sa.select(sa.literal(1)).where(
                outbox.c.position == row.position, outbox.c.id == row.id
            )
        ).first()
    )


def bury(
    connection: sa.Connection, tables: Tables, clock: Clock, failed: Failed, attempts: int
) -> None:
    """The row becomes a dead letter with everything it had, and leaves the outbox, in this
    transaction. One that is gone was published or buried before, and stays so.
    """
    outbox, row = tables.outbox, failed.row
    created_at: dt.datetime | None = connection.execute(
        sa.select(outbox.c.created_at).where(
            outbox.c.position == row.position, outbox.c.id == row.id
        )
    ).scalar_one_or_none()
    if created_at is None:
        return  # an owner before us has buried or published it
    connection.execute(
        sa.insert(tables.dead_letter).values(
            id=row.id,
            position=row.position,
            partition=row.partition,
            topic=row.topic,
            key=row.key,
            headers=row.headers,
            body=row.body,
            created_at=created_at,
            died_at=clock.now(),
            attempts=attempts,
            error_code=failed.code,
            error=storable(failed.error, MAX_ERROR),
        )
    )
    delete_published(connection, tables, [row])


def pending(connection: sa.Connection, tables: Tables) -> int:
    """How many messages wait in the outbox."""
    return connection.execute(sa.select(sa.func.count()).select_from(tables.outbox)).scalar_one()
