"""Starting an instance inside the caller's transaction.

Written at its commit, once per business key.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.envelopes import check_key, check_line
from outbox_saga.errors import SagaStartConflict
from outbox_saga.ids import new_id, saga_id
from outbox_saga.instances import Entry, Instance, dump_data
from outbox_saga.pending import Write
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import DATABASE_CLOCK, Clock
from outbox_saga.queries.schema import refuse_translated
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.progress import initial
from outbox_saga.tables import Tables
from outbox_saga.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Start:
    """An instance that starts with the transaction."""

    instance: Instance
    input_hash: bytes


def keep_start(
    definition: Saga[Any], uow: UnitOfWork[Any], data: dict[str, Any], business_key: str | None
) -> UUID:
    """Keeps the start with the unit of work; returns the instance's id."""
    check_key(business_key)
    if uow.correlation_id is not None:
        check_line("correlation_id", uow.correlation_id)
    definition.reload(data)
    id_ = new_id() if business_key is None else saga_id(uow.source, definition.name, business_key)
    instance = Instance(
        id=id_,
        name=definition.name,
        version=definition.version,
        shape=definition.shape,
        source=uow.source,
        business_key=business_key,
        correlation_id=uow.correlation_id or str(id_),
        revision=0,
        epoch=0,
        state=initial(definition, data),
    )
    digest = hashlib.sha256(dump_data(data).encode()).digest()
    uow.keep(Start(instance, digest), start_writer(uow.tables, DATABASE_CLOCK))
    return id_


@functools.cache
def start_writer(tables: Tables, clock: Clock) -> Write:
    """The function that writes a transaction's starts at commit."""

    def write(connection: sa.Connection, things: list[Any]) -> None:
        refuse_translated(connection, tables)
        # in the order of their ids: two transactions that start the same two sagas do not wait in
        # a circle
        for start in sorted(cast("list[Start]", things), key=lambda s: s.instance.id):
            _write_start(connection, tables, clock, start)

    return write


def _write_start(connection: sa.Connection, tables: Tables, clock: Clock, start: Start) -> None:
    known = None
    while known is None:  # it may be pruned between the two
        if sagas.insert(connection, tables, clock, start.instance, start.input_hash):
            sagas.add_history(
                connection,
                tables,
                clock,
                start.instance.id,
                0,
                [Entry("STARTED", detail=start.instance.name)],
            )
            return
        known = sagas.input_hash(connection, tables, start.instance.id)
    if known != start.input_hash:
        raise SagaStartConflict(
            f"saga {start.instance.name} was already started with business key "
            f"{start.instance.business_key!r} and other data; use another key, or the same data"
        )
