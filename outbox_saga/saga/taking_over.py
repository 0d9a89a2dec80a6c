"""Instances of an older version become instances of the one that takes them over.

Only an instance that pins exactly the shape which that version's steps have with the older model
of the data: nothing but the data is different, and that is upcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from outbox_saga.errors import MessageRefused, SagaUnknown
from outbox_saga.instances import Entry, Instance, Phase, StepState, dump_data, dump_progress
from outbox_saga.payloads import storable
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.changes import MAX_REASON
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.definitions import Definitions
from outbox_saga.tables import Tables

_CALLED_AGAIN: tuple[Phase, ...] = ("waiting", "calling", "failed", "undoing", "stuck")


def taken_over(definition: Saga[Any], seen: Instance) -> Instance:
    """The instance as one of this version; itself, if it is one.

    Raises:
        MessageRefused: Its data cannot be upcast; nothing was changed.
    """
    if seen.shape == definition.shape:
        return seen
    data = definition.upcast(seen.version, seen.state.data)
    steps = {
        name: _step(definition, seen, data, name, step) for name, step in seen.state.steps.items()
    }
    state = replace(seen.state, data=data, steps=steps)
    return replace(seen, version=definition.version, shape=definition.shape, state=state)


def take_over(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    definition: Saga[Any],
    seen: Instance,
    *,
    leased: bool,
) -> Instance | None:
    """The instance, which is one of this version from the commit on; itself, if it is one.

    None: somebody else has it, or has moved it; nothing was written. A process of an older release
    that still has it would decide by the older definition; so it is taken only from nobody, and
    whoever had it is passed.

    Args:
        leased: It is the caller's already.

    Raises:
        MessageRefused: Its data cannot be upcast.
    """
    if seen.shape == definition.shape:
        return seen
    new = taken_over(definition, seen)
    saga = tables.saga
    same = [saga.c.id == seen.id, saga.c.revision == seen.revision, saga.c.epoch == seen.epoch]
    new = replace(new, revision=seen.revision + 1)
    values: dict[str, Any] = {
        "version": new.version,
        "shape": new.shape,
        "data": dump_data(new.state.data),
        "progress": dump_progress(new.state),
        "revision": new.revision,
        "updated_at": clock.now(),
    }
    if not leased:
        same.append(sa.or_(saga.c.lease_until.is_(None), saga.c.lease_until < clock.now()))
        new = replace(new, epoch=seen.epoch + 1)
        # who had it has died, as far as its lease says; the next claim cannot see that any more
        died = sa.case((saga.c.owner.is_(None), 0), else_=1)
        values |= {"owner": None, "lease_until": None, "epoch": new.epoch}
        values = {"deaths": saga.c.deaths + died, **values}
    # in this order: MariaDB and MySQL evaluate one after another, with what is set already
    ordered = [(saga.c[name], value) for name, value in values.items()]
    if not connection.execute(sa.update(saga).where(*same).ordered_values(*ordered)).rowcount:
        return None
    entry = Entry("UPCAST", detail=f"from version {seen.version} to version {new.version}")
    sagas.add_history(connection, tables, clock, seen.id, new.revision, [entry])
    return new


def known(
    definitions: Definitions,
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: Instance,
) -> tuple[Saga[Any], Instance]:
    """Who decides about the instance, and the instance as one of that version.

    Args:
        connection: In the transaction that decides, where `seen` was read under lock.

    Raises:
        SagaUnknown: Nobody here can.
    """
    definition = definitions.of(seen)
    about = f"saga {seen.id} of {seen.name} version {seen.version}"
    if definition is None:
        raise SagaUnknown(
            f"something came for {about}, and no definition of its shape is here; deploy the "
            "version it was started with"
        )
    try:
        new = take_over(connection, tables, clock, definition, seen, leased=False)
    except MessageRefused as refused:
        raise SagaUnknown(f"something came for {about}: {why_not(refused)}") from refused
    if new is None:
        raise SagaUnknown(
            f"something came for {about}, which a process of an older release carries on now; "
            "try again when it has put it down"
        )
    return definition, new


def _step(
    definition: Saga[Any], seen: Instance, data: Mapping[str, Any], name: str, step: StepState
) -> StepState:
    rule = definition.steps[name]
    if step.input is not None and step.phase in _CALLED_AGAIN:
        undoing = step.phase == "undoing" or step.stuck == "undo"
        command = rule.undone == "command" if undoing else rule.kind == "command"
        # what a command has is the other service's, and stays as it was sent
        if not command:
            step = replace(step, input=definition.upcast(seen.version, step.input))
    elif step.input is not None:
        step = replace(step, input=None)  # what a person has ended: nobody calls with it again
    if step.early is not None:
        # what its event brings, as this version names it: what it makes different
        brought = definition.upcast(seen.version, {**seen.state.data, **step.early})
        step = replace(
            step,
            early={
                field: value
                for field, value in brought.items()
                if field in step.early or field not in data or data[field] != value
            },
        )
    old = seen.state.data
    moved = (definition.renamed(seen.version, old, data, field) for field in step.wrote)
    return replace(step, wrote=tuple(sorted(frozenset[str]().union(*moved))))


def why_not(refused: MessageRefused) -> str:
    """The reason for people; the path only, for what is refused may be personal."""
    path = storable(refused.path, MAX_REASON)  # of what no table takes, too: it may be the reason
    return f"its data cannot be upcast ({path}); mend the upcaster and release it"
