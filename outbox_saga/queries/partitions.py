"""Who may publish which partitions: lease rows, by the database's clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import for_update, skip_locked
from outbox_saga.tables import PARTITIONS, Tables


def take_lease(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    seconds: float,
    limit: int = PARTITIONS,
) -> dict[int, int]:
    """The partitions this owner holds now, with their epochs.

    Its own are taken anew, and of those that nobody holds so many that it has `limit` of them.
    Each one taken gets the next epoch.
    """
    lease = tables.partition_lease
    # the owner's first: after a restart of its work it holds no more than before
    mine_first = sa.case((lease.c.owner == owner, 0), else_=1)
    free = connection.scalars(
        skip_locked(
            connection,
            sa.select(lease.c.partition)
            .where(
                sa.or_(
                    lease.c.until.is_(None), lease.c.until < clock.now(), lease.c.owner == owner
                )
            )
            .order_by(mine_first, lease.c.partition)
            .limit(limit),
        )
    ).all()
    if free:
        connection.execute(
            sa.update(lease)
            .where(lease.c.partition.in_(free))
            .values(owner=owner, epoch=lease.c.epoch + 1, until=clock.now(seconds), revisit=None)
        )
    return held(connection, tables, clock, owner)


def take_more(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    seconds: float,
    limit: int,
) -> dict[int, int]:
    """As `take_lease`, of partitions that nobody holds only, at most so many."""
    lease = tables.partition_lease
    free = connection.scalars(
        skip_locked(
            connection,
            sa.select(lease.c.partition)
            .where(sa.or_(lease.c.until.is_(None), lease.c.until < clock.now()))
            .order_by(lease.c.partition)
            .limit(limit),
        )
    ).all()
    if free:
        connection.execute(
            sa.update(lease)
            .where(lease.c.partition.in_(free))
            .values(owner=owner, epoch=lease.c.epoch + 1, until=clock.now(seconds), revisit=None)
        )
    return held(connection, tables, clock, owner)


def held(connection: sa.Connection, tables: Tables, clock: Clock, owner: UUID) -> dict[int, int]:
    """The partitions of this owner's leases that last, with their epochs."""
    lease = tables.partition_lease
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


def take_revisits(connection: sa.Connection, tables: Tables, owner: UUID) -> int | None:
    """The lowest position at which somebody has put a row back for this owner; told once.

    In one transaction with whatever the owner does about it in its memory: an owner that dies
    afterwards is followed by one that reads from the bottom.
    """
    lease = tables.partition_lease
    mine = (lease.c.owner == owner, lease.c.revisit.is_not(None))
    # no write when there is nothing, which is nearly always
    rows = connection.execute(sa.select(lease.c.partition, lease.c.revisit).where(*mine)).all()
    if not rows:
        return None
    for row in rows:
        # what was put back meanwhile, at a lower position, is told the next time
        connection.execute(
            sa.update(lease)
            .where(lease.c.partition == row.partition, lease.c.revisit == row.revisit)
            .values(revisit=None)
        )
    return min(int(row.revisit) for row in rows)


def release_lease(
    connection: sa.Connection,
    tables: Tables,
    owner: UUID,
    partitions: Collection[int] | None = None,
) -> None:
    """Of this owner these partitions (None: all) are leased no longer.

    A successor need not wait.
    """
    lease = tables.partition_lease
    statement = sa.update(lease).where(lease.c.owner == owner)
    if partitions is not None:
        statement = statement.where(lease.c.partition.in_(sorted(partitions)))
    connection.execute(statement.values(owner=None, until=None))


def was_passed(connection: sa.Connection, tables: Tables, epochs: Mapping[int, int]) -> bool:
    """Whether anybody has taken one of these partitions since they were leased with these
    epochs.
    """
    lease = tables.partition_lease
    found = connection.execute(
        sa.select(lease.c.partition, lease.c.epoch).where(lease.c.partition.in_(sorted(epochs)))
    )
    return any(row.epoch != epochs[row.partition] for row in found)


def holds_lease(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    epochs: Mapping[int, int],
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
