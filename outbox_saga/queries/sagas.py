"""Saga instances: start, read, compare-and-set, history. Who has them: `leases`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.errors import SagaUnreadable
from outbox_saga.instances import (
    ENDED,
    OVER_FOR_GOOD,
    Entry,
    Instance,
    SagaState,
    dump_data,
    dump_progress,
    load_state,
)
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import for_update, insert_or_ignore
from outbox_saga.tables import Tables

ENTRIES_A_REVISION = 1000  # history numbers are revision * this + index


def insert(
    connection: sa.Connection, tables: Tables, clock: Clock, instance: Instance, input_hash: bytes
) -> bool:
    """True when the instance is new.

    False when its id is there already (then nothing was written).
    """
    return bool(
        connection.execute(
            insert_or_ignore(connection, tables.saga).values(
                id=instance.id,
                source=instance.source,
                name=instance.name,
                version=instance.version,
                shape=instance.shape,
                business_key=instance.business_key,
                correlation_id=instance.correlation_id,
                state=instance.state.status,
                revision=0,
                data=dump_data(instance.state.data),
                progress=dump_progress(instance.state),
                input_hash=input_hash,
                due_at=clock.now(),
                epoch=0,
                started_at=clock.now(),
                updated_at=clock.now(),
            )
        ).rowcount
    )


def input_hash(connection: sa.Connection, tables: Tables, id_: UUID) -> bytes | None:
    """The hash of the data that the instance was started with."""
    found: bytes | None = connection.execute(
        # locked: a plain read at MariaDB's REPEATABLE READ would not see what the INSERT ran into
        for_update(connection, sa.select(tables.saga.c.input_hash).where(tables.saga.c.id == id_))
    ).scalar_one_or_none()
    return found


def columns(tables: Tables) -> list[sa.Column[Any]]:
    """What an instance is made of."""
    c = tables.saga.c
    return [
        c.id, c.name, c.version, c.shape, c.source, c.business_key, c.correlation_id,
        c.revision, c.epoch, c.state, c.data, c.progress, c.reason, c.deaths, c.started_at,
    ]  # fmt: skip


def instance_of(row: Any) -> Instance:
    """The instance in a row of these columns.

    Raises:
        SagaUnreadable: It is not what this release writes.
    """
    try:
        state = load_state(row.state, row.data, row.progress, row.reason)
    except SagaUnreadable as error:
        raise SagaUnreadable(f"saga {row.id} cannot be read: {error}") from None
    return with_state(row, state)


def with_state(row: Any, state: SagaState) -> Instance:
    """As `instance_of`, for a state that was read already."""
    return Instance(
        id=row.id,
        name=row.name,
        version=row.version,
        shape=row.shape,
        source=row.source,
        business_key=row.business_key,
        correlation_id=row.correlation_id,
        revision=row.revision,
        epoch=row.epoch,
        state=state,
        deaths=row.deaths,
        started_at=row.started_at,
    )


def read(
    connection: sa.Connection, tables: Tables, id_: UUID, *, lock: bool = False
) -> Instance | None:
    """The instance as it is; with `lock`, nobody else changes it until the transaction ends."""
    statement = sa.select(*columns(tables)).where(tables.saga.c.id == id_)
    row = connection.execute(
        for_update(connection, statement) if lock else statement
    ).one_or_none()
    return None if row is None else instance_of(row)


def of_correlation(
    connection: sa.Connection, tables: Tables, name: str, correlation_id: str
) -> list[UUID]:
    """This saga's instances in this conversation that go on, or may when a person has helped."""
    saga = tables.saga
    return list(
        connection.scalars(
            sa.select(saga.c.id).where(
                saga.c.correlation_id == correlation_id,
                saga.c.name == name,
                saga.c.state.not_in(OVER_FOR_GOOD),
            )
        )
    )


def is_over(connection: sa.Connection, tables: Tables, id_: UUID) -> bool:
    """Whether the instance has ended for good, whatever else is in its row."""
    state = sa.select(tables.saga.c.state).where(tables.saga.c.id == id_)
    return connection.execute(state).scalar_one_or_none() in OVER_FOR_GOOD


def compare_and_set(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: Instance,
    state: SagaState,
    due: dt.datetime | None,
    *,
    keep_lease: bool,
    keep_deaths: bool,
) -> bool:
    """True when the instance was still as seen (revision and lease epoch) and is now `state`, one
    revision on; arguments as for `transition.record`.
    """
    saga = tables.saga
    values: dict[str, Any] = {
        "state": state.status,
        "revision": seen.revision + 1,
        "data": dump_data(state.data),
        "progress": dump_progress(state),
        "reason": state.reason,
        "due_at": due,
        "updated_at": clock.now(),
    }
    if not keep_lease:
        values |= {"owner": None, "lease_until": None}
    if not keep_deaths:
        values["deaths"] = 0
    if state.status in ENDED:
        if state.status != seen.state.status:
            values["ended_at"] = clock.now()
    elif seen.state.status in ENDED:
        values["ended_at"] = None
    return bool(
        connection.execute(
            sa.update(saga)
            .where(
                saga.c.id == seen.id, saga.c.revision == seen.revision, saga.c.epoch == seen.epoch
            )
            .values(**values)
        ).rowcount
    )


def add_history(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    id_: UUID,
    revision: int,
    entries: Sequence[Entry],
) -> None:
    """The transitions of this revision, appended."""
    if not entries:
        return
    connection.execute(
        sa.insert(tables.saga_history).values(
            [
                {
                    "saga_id": id_,
                    "number": revision * ENTRIES_A_REVISION + index,
                    "revision": revision,
                    "transition": entry.transition,
                    "step": entry.step,
                    "attempt": entry.attempt,
                    "started_at": entry.started_at,
                    "at": clock.now(),
                    "detail": entry.detail,
                    "code": entry.code,
                }
                for index, entry in enumerate(entries)
            ]
        )
    )


def unfinished(connection: sa.Connection, tables: Tables) -> int:
    """How many instances have not ended."""
    saga = tables.saga
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(saga)
        .where(saga.c.state.in_(["running", "compensating"]))
    ).scalar_one()
