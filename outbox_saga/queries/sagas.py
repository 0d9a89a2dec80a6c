"""Saga instances: start, claim, compare-and-set, history."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.instances import (
    ENDED,
    Entry,
    Instance,
    SagaState,
    dump_data,
    dump_progress,
    load_progress,
)
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import (
    for_update,
    idle_limit,
    insert_or_ignore,
    skip_locked,
)
from outbox_saga.tables import Tables

RELEASE_SECONDS = 2.0  # that a process standing still may hold what it was releasing
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


def _columns(tables: Tables) -> list[sa.Column[Any]]:
    c = tables.saga.c
    return [
        c.id, c.name, c.version, c.shape, c.source, c.business_key, c.correlation_id,
        c.revision, c.epoch, c.state, c.data, c.progress, c.reason,
    ]  # fmt: skip


def _instance(row: Any) -> Instance:
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
        state=SagaState(row.state, json.loads(row.data), load_progress(row.progress), row.reason),
    )


def claim(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    lease: float,
    names: Sequence[str],
    limit: int,
) -> tuple[dt.datetime, list[Instance]]:
    """Due instances of these sagas, now leased to `owner`, and the database's time.

    Args:
        lease: Seconds; then another process may take them over.
        limit: Instances.
    """
    saga = tables.saga
    now = clock.now()
    found = connection.execute(
        skip_locked(
            connection,
            # its locks never outlive the lease, though the process stand still before the commit
            sa.select(*_columns(tables), now.label("now"), *idle_limit(connection, lease))
            .where(
                saga.c.due_at <= now,
                sa.or_(saga.c.lease_until.is_(None), saga.c.lease_until < now),
                saga.c.name.in_(names),
            )
            .order_by(saga.c.due_at)
            .limit(limit),
        )
    ).all()
    if not found:
        return dt.datetime.min.replace(tzinfo=dt.UTC), []
    connection.execute(
        sa.update(saga)
        .where(saga.c.id.in_([row.id for row in found]))
        .values(owner=owner, lease_until=clock.now(lease), epoch=saga.c.epoch + 1)
    )
    instances = [_instance(row) for row in found]
    return found[0].now, [_with_epoch(i, i.epoch + 1) for i in instances]


def _with_epoch(instance: Instance, epoch: int) -> Instance:
    return replace(instance, epoch=epoch)


def any_due(connection: sa.Connection, tables: Tables, clock: Clock, names: Sequence[str]) -> bool:
    """Whether there may be something to claim.

    Reads only, so that an idle look takes no write lock.
    """
    saga = tables.saga
    now = clock.now()
    return bool(
        connection.execute(
            sa.select(sa.literal(1))
            .where(
                saga.c.due_at <= now,
                sa.or_(saga.c.lease_until.is_(None), saga.c.lease_until < now),
                saga.c.name.in_(names),
            )
            .limit(1)
        ).first()
    )


def read(
    connection: sa.Connection, tables: Tables, id_: UUID, *, lock: bool = False
) -> Instance | None:
    """The instance as it is; with `lock`, nobody else changes it until the transaction ends."""
    statement = sa.select(*_columns(tables)).where(tables.saga.c.id == id_)
    row = connection.execute(
        for_update(connection, statement) if lock else statement
    ).one_or_none()
    return None if row is None else _instance(row)


def compare_and_set(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: Instance,
    state: SagaState,
    due: dt.datetime | None,
    *,
    keep_lease: bool,
) -> bool:
    """True when the instance was still as seen (revision and lease epoch) and is now `state`, one
    revision on.
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
    if state.status in ENDED:
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
                }
                for index, entry in enumerate(entries)
            ]
        )
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

    Due after so many seconds, or when it was before.
    """
    saga = tables.saga
    values: dict[str, Any] = {"owner": None, "lease_until": None}
    if after is not None:
        values["due_at"] = clock.now(after)
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


def unfinished(connection: sa.Connection, tables: Tables) -> int:
    """How many instances have not ended."""
    saga = tables.saga
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(saga)
        .where(saga.c.state.in_(["running", "compensating"]))
    ).scalar_one()
