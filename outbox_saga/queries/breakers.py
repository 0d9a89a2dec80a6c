"""Circuit breakers' rows: one for each that has ever failed, shared by all processes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from outbox_saga.breaker import Stand
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import for_update, make_sure_of_row, skip_locked
from outbox_saga.tables import Tables


def read(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    names: Collection[str] | None = None,
) -> list[Stand]:
    """How these stand, or all; one that never failed has no row, and is closed."""
    statement = _select(tables, clock).order_by(tables.breaker.c.name)
    if names is not None:
        statement = statement.where(tables.breaker.c.name.in_(sorted(names)))
    return [_stand(row) for row in connection.execute(statement)]


def lock(connection: sa.Connection, tables: Tables, clock: Clock, name: str) -> Stand:
    """How it stands; nobody else changes it until the transaction ends."""
    breaker = tables.breaker
    there = for_update(connection, _select(tables, clock).where(breaker.c.name == name))
    row = connection.execute(there).one_or_none()
    if row is None:
        connection.execute(
            make_sure_of_row(connection, breaker).values(
                name=name, failures=0, trips=0, changed_at=clock.now()
            )
        )
        row = connection.execute(there).one()
    return _stand(row)


def note(connection: sa.Connection, tables: Tables, clock: Clock, stand: Stand) -> None:
    """It stands like this now; it was locked."""
    connection.execute(
        sa.update(tables.breaker)
        .where(tables.breaker.c.name == stand.name)
        .values(
            failures=stand.failures,
            until=stand.until,
            probe_until=stand.probe_until,
            trips=stand.trips,
            opened_at=stand.opened_at,
            changed_at=clock.now(),
        )
    )


def take_probe(
    connection: sa.Connection, tables: Tables, clock: Clock, name: str, seconds: float
) -> bool:
    """True when this transaction may send the one call that a half-open breaker lets through.

    It waits for nobody: who asks may hold another breaker, and an instance, that somebody waits
    for who has this one.

    Args:
        seconds: After which it counts as lost.
    """
    breaker = tables.breaker
    free = sa.select(breaker.c.name).where(
        breaker.c.name == name,
        breaker.c.until <= clock.now(),
        sa.or_(breaker.c.probe_until.is_(None), breaker.c.probe_until <= clock.now()),
    )
    if connection.execute(skip_locked(connection, free)).first() is None:
        return False
    connection.execute(
        sa.update(breaker)
        .where(breaker.c.name == name)
        .values(probe_until=clock.now(seconds), changed_at=clock.now())
    )
    return True


def give_back(
    connection: sa.Connection, tables: Tables, clock: Clock, names: Collection[str]
) -> None:
    """The probes that this transaction has taken may be taken again."""
    if names:
        connection.execute(
            sa.update(tables.breaker)
            .where(tables.breaker.c.name.in_(sorted(names)))
            .values(probe_until=None, changed_at=clock.now())
        )


def _select(tables: Tables, clock: Clock) -> sa.Select[Any]:
    c = tables.breaker.c
    kept: list[sa.ColumnElement[Any]] = [
        c.name, c.failures, c.until, c.probe_until, c.trips, c.opened_at,
    ]  # fmt: skip
    return sa.select(*kept, clock.now().label("now"))


def _stand(row: Any) -> Stand:
    now: dt.datetime = row.now
    return Stand(row.name, now, row.failures, row.until, row.probe_until, row.trips, row.opened_at)
