"""Saga instances as people see them: listed, and one with its history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.errors import SagaUnreadable
from outbox_saga.instances import OVER_FOR_GOOD, Entry, Instance, SagaState
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.tables import Tables


@dataclass(frozen=True, slots=True)
class Happening:
    """One row of an instance's history, with the moment it was written."""

    entry: Entry
    at: dt.datetime
    revision: int


def list_sagas(
    connection: sa.Connection,
    tables: Tables,
    *,
    name: str | None = None,
    state: str | None = None,
    business_key: str | None = None,
    correlation_id: str | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[Instance]:
    """Those in the order of their ids, from behind the id `after` on.

    One that cannot be read is there, parked with the reason, without data and steps.
    """
    saga = tables.saga
    statement = sa.select(*sagas.columns(tables)).order_by(saga.c.id).limit(limit)
    wanted = {"name": name, "state": state, "business_key": business_key}
    wanted["correlation_id"] = correlation_id
    for column, value in wanted.items():
        if value is not None:
            statement = statement.where(saga.c[column] == value)
    if after is not None:
        statement = statement.where(saga.c.id > after)
    return [_listed(row) for row in connection.execute(statement)]


def _listed(row: Any) -> Instance:
    try:
        return sagas.instance_of(row)
    except SagaUnreadable as error:
        state = SagaState(row.state, {}, {}, row.reason, parked=str(error))
        return sagas.with_state(row, state)


def history(connection: sa.Connection, tables: Tables, id_: UUID) -> Sequence[Happening]:
    """All that happened to this instance, from its start on."""
    table = tables.saga_history
    rows = connection.execute(
        sa.select(table).where(table.c.saga_id == id_).order_by(table.c.number)
    )
    return [
        Happening(
            Entry(row.transition, row.step, row.attempt, row.detail, row.started_at, row.code),
            row.at,
            row.revision,
        )
        for row in rows
    ]


def is_leased(connection: sa.Connection, tables: Tables, clock: Clock, id_: UUID) -> bool:
    """Whether a process has the instance now."""
    saga = tables.saga
    found = sa.select(saga.c.id).where(
        saga.c.id == id_, saga.c.owner.is_not(None), saga.c.lease_until >= clock.now()
    )
    return connection.execute(found).first() is not None


def went_on(connection: sa.Connection, tables: Tables, id_: UUID, revision: int) -> bool:
    """Whether anything had happened to it by that revision but that it was started, parked, or
    taken over.
    """
    table = tables.saga_history
    moved = sa.select(table.c.number).where(
        table.c.saga_id == id_,
        table.c.revision <= revision,
        table.c.transition.not_in(("STARTED", "PARKED", "UPCAST")),
    )
    return bool(connection.execute(sa.select(moved.exists())).scalar_one())


def alive(
    connection: sa.Connection, tables: Tables, source: str
) -> dict[tuple[str, int, str], int]:
    """How many instances that this service started are not over for good, by saga, version and
    shape.
    """
    saga = tables.saga
    kind = (saga.c.name, saga.c.version, saga.c.shape)
    rows = connection.execute(
        sa.select(*kind, sa.func.count())
        .where(saga.c.source == source, saga.c.state.not_in(OVER_FOR_GOOD))
        .group_by(*kind)
    )
    return {(name, version, shape): count for name, version, shape, count in rows}
