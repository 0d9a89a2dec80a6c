"""Who carries an instance on: claim, renew, release; and how many have died of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.errors import SagaUnreadable
from outbox_saga.instances import Instance
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import idle_limit, skip_locked
from outbox_saga.queries.sagas import columns, instance_of
from outbox_saga.queries.unreadable import Unreadable
from outbox_saga.tables import Tables

RELEASE_SECONDS = 2.0  # that a process standing still may hold what it was releasing
SUSPECT_DEATHS = 2  # in a row: from so many on, the instance itself may be what kills its owners
SUSPECTS_SEEN = 1000  # due instances among which the one with the fewest deaths is looked for

_Locked = tuple[dt.datetime, Instance]  # the database's time when it was seen


def _orphaned(tables: Tables, owner: UUID) -> sa.ColumnElement[int]:
    """1 for a due instance whose owner let the lease run out, which one that lives does not.

    Our own lease may run out while we live: the database may have been away.
    """
    saga = tables.saga
    return sa.case((sa.or_(saga.c.owner.is_(None), saga.c.owner == owner), 0), else_=1)


@dataclass(frozen=True, slots=True)
class Known:
    """The sagas that a process can carry on.

    Args:
        names: Of the sagas.
        shapes: Of their versions that are here; None: any.
        source: The service whose sagas they are; None: not told.
        unreadable: Instances that are left alone; those that a claim comes across are added.
    """

    names: Sequence[str]
    shapes: Sequence[str] | None = None
    source: str | None = None
    unreadable: Unreadable = field(default_factory=Unreadable)


def _due(
    tables: Tables, clock: Clock, owner: UUID, known: Known, *, suspects: bool
) -> list[sa.ColumnElement[bool]]:
    saga = tables.saga
    conditions = [*_free(tables, clock), saga.c.name.in_(known.names)]
    if known.shapes is not None:
        conditions.append(saga.c.shape.in_(known.shapes))
    if left_out := known.unreadable.ids:
        conditions.append(saga.c.id.not_in(left_out))
    if not suspects:
        conditions.append(saga.c.deaths + _orphaned(tables, owner) < SUSPECT_DEATHS)
    return conditions


def _free(tables: Tables, clock: Clock, overdue: float = 0.0) -> list[sa.ColumnElement[bool]]:
    saga, now = tables.saga, clock.now()
    return [
        saga.c.due_at <= (clock.now(-overdue) if overdue else now),
        sa.or_(saga.c.lease_until.is_(None), saga.c.lease_until < now),
    ]


def stranded(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    known: Known,
    overdue: float,
    limit: int,
) -> list[Instance]:
    """Instances that have been due for so many seconds, and that nobody has: of the known sagas or
    service, but of no shape that is here.
    """
    assert known.shapes is not None
    saga = tables.saga
    ours: sa.ColumnElement[bool] = saga.c.name.in_(known.names)
    if known.source is not None:
        ours = sa.or_(ours, saga.c.source == known.source)
    statement = (
        sa.select(*columns(tables), saga.c.due_at)
        .where(*_free(tables, clock, overdue), ours, saga.c.shape.not_in(known.shapes))
        .order_by(saga.c.due_at)
    )
    if left_out := known.unreadable.ids:
        statement = statement.where(saga.c.id.not_in(left_out))
    return [seen for _, seen in _readable(connection, tables, known, statement, limit)]


def _readable(
    connection: sa.Connection,
    tables: Tables,
    known: Known,
    statement: sa.Select[Any],
    limit: int,
    *,
    lock: bool = False,
) -> list[tuple[Any, Instance]]:
    """The first of these rows that can be read, with the instances they are; those that cannot
    be, take nobody's place.

    Args:
        statement: By `due_at`, which is among its columns.
        lock: What others have locked is left out, and what is found is locked.
    """
    saga = tables.saga
    found: list[tuple[Any, Instance]] = []
    passed: list[Any] = []  # of the last moment that was seen, whether they can be read or not
    wanted = statement
    while True:
        some = wanted.limit(limit - len(found))
        rows = connection.execute(skip_locked(connection, some) if lock else some).all()
        unreadable = False
        for row in rows:
            try:
                found.append((row, instance_of(row)))
            except SagaUnreadable as error:
                unreadable = True
                known.unreadable.note(row.id, str(error))
        if not unreadable:
            return found
        # behind them, and not from the front again: there may be more than are left out by name
        last = rows[-1].due_at
        passed = [r.id for r in rows if r.due_at == last] + (
            passed if rows[0].due_at == last else []
        )
        wanted = statement.where(saga.c.due_at >= last, saga.c.id.not_in(passed))


def claim(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    lease: float,
    known: Known,
    limit: int,
    *,
    suspects: bool = True,
) -> tuple[dt.datetime, list[Instance]]:
    """Due instances of these sagas, now leased to `owner`, and the database's time.

    One that has had owners die with it, `SUSPECT_DEATHS` or more, is claimed alone of its kind:
    whatever kills every process must not take the same others with it each time.

    Args:
        lease: Seconds; then another process may take them over.
        limit: Instances.
        suspects: Whether such a one may be among them; not while another one is in hand.
    """
    page = _lock(connection, tables, clock, owner, lease, known, limit, suspects=suspects)
    if suspects and any(instance.deaths >= SUSPECT_DEATHS for _, instance in page):
        page = _lock_one_suspect(connection, tables, clock, owner, lease, known)
        if limit > len(page):
            page += _lock(
                connection, tables, clock, owner, lease, known, limit - len(page), suspects=False
            )
    if not page:
        return dt.datetime.min.replace(tzinfo=dt.UTC), []
    saga = tables.saga
    connection.execute(
        sa.update(saga)
        .where(saga.c.id.in_([instance.id for _, instance in page]))
        # in this order: MariaDB and MySQL evaluate one after another, with what is set already
        .ordered_values(
            (saga.c.deaths, saga.c.deaths + _orphaned(tables, owner)),
            (saga.c.owner, owner),
            (saga.c.lease_until, clock.now(lease)),
            (saga.c.epoch, saga.c.epoch + 1),
        )
    )
    return max(now for now, _ in page), [instance for _, instance in page]


def _lock(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    lease: float,
    known: Known,
    limit: int,
    *,
    suspects: bool,
    id_: UUID | None = None,
) -> list[_Locked]:
    """Those that can be read, as they are once they are claimed."""
    saga = tables.saga
    statement = (
        sa.select(
            *columns(tables),
            saga.c.due_at,
            _orphaned(tables, owner).label("orphaned"),
            clock.now().label("now"),
            # its locks never outlive the lease, though the process stand still before the commit
            *idle_limit(connection, lease),
        )
        .where(*_due(tables, clock, owner, known, suspects=suspects))
        .order_by(saga.c.due_at)
    )
    if id_ is not None:
        statement = statement.where(saga.c.id == id_)
    return [
        (row.now, _claimed(row, seen))
        for row, seen in _readable(connection, tables, known, statement, limit, lock=True)
    ]


def _claimed(row: Any, seen: Instance) -> Instance:
    deaths = row.deaths + row.orphaned
    return replace(seen, epoch=row.epoch + 1, deaths=deaths, orphaned=bool(row.orphaned))


def _lock_one_suspect(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    lease: float,
    known: Known,
) -> list[_Locked]:
    """The one with the fewest deaths: those that only happened to be there are soon done.

    Found by a plain read: with FOR UPDATE, MariaDB locks every row that it sorts.
    """
    saga = tables.saga
    deaths = (saga.c.deaths + _orphaned(tables, owner)).label("deaths")
    due = (
        sa.select(saga.c.id, saga.c.due_at, deaths)
        .where(*_due(tables, clock, owner, known, suspects=True))
        .order_by(saga.c.due_at)
        .limit(SUSPECTS_SEEN)
        .subquery()
    )
    found = connection.execute(
        sa.select(due.c.id)
        .where(due.c.deaths >= SUSPECT_DEATHS)
        .order_by(due.c.deaths, due.c.due_at)
        .limit(1)
    ).scalar_one_or_none()
    if found is None:
        return []
    return _lock(connection, tables, clock, owner, lease, known, 1, suspects=True, id_=found)


def any_due(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    known: Known,
    *,
    suspects: bool = True,
) -> bool:
    """Whether there may be something for `owner` to claim; arguments as for `claim`.

    Reads only, so that an idle look takes no write lock.
    """
    return bool(
        connection.execute(
            sa.select(sa.literal(1))
            .select_from(tables.saga)
            .where(*_due(tables, clock, owner, known, suspects=suspects))
            .limit(1)
        ).first()
    )


def renew(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    ids: Sequence[UUID],
    lease: float,
) -> set[UUID]:
    """Which of these instances are still `owner`'s, and stay so for another lease.

    One that was taken over meanwhile is left alone.
    """
    saga = tables.saga
    connection.execute(
        _with_idle_limit(
            connection,
            lease,
            sa.update(saga)
            .where(saga.c.id.in_(ids), saga.c.owner == owner)
            .values(lease_until=clock.now(lease)),
        )
    )
    ours = sa.select(saga.c.id).where(saga.c.id.in_(ids), saga.c.owner == owner)
    return set(connection.scalars(ours))


def revisions(connection: sa.Connection, tables: Tables, ids: Sequence[UUID]) -> dict[UUID, int]:
    """At which revision each of these instances is."""
    saga = tables.saga
    rows = connection.execute(sa.select(saga.c.id, saga.c.revision).where(saga.c.id.in_(ids)))
    return {row.id: row.revision for row in rows}


def release(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    instance: Instance,
    owner: UUID,
    *,
    after: float | None = None,
) -> None:
    """The instance is nobody's, as far as it was `owner`'s.

    Due after so many seconds, or when it was before; or as whoever has moved it since says.
    """
    saga = tables.saga
    values: dict[str, Any] = {"owner": None, "lease_until": None}
    if after is not None:
        # whatever has moved it meanwhile, an answer or an event, has said when it is due
        as_seen = saga.c.revision == instance.revision
        values["due_at"] = sa.case((as_seen, clock.now(after)), else_=saga.c.due_at)
    connection.execute(
        _with_idle_limit(
            connection,
            RELEASE_SECONDS,
            sa.update(saga)
            .where(saga.c.id == instance.id, saga.c.owner == owner, saga.c.epoch == instance.epoch)
            .values(**values),
        )
    )


def _with_idle_limit(connection: sa.Connection, seconds: float, statement: sa.Update) -> Any:
    columns = idle_limit(connection, seconds)
    return statement.returning(*columns) if columns else statement
