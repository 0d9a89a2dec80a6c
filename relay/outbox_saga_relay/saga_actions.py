"""`outbox-saga saga retry | skip | mark-done | cancel | resume`: decisions about one saga."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import click

from outbox_saga.instances import Instance
from outbox_saga.saga.interventions import Intervention
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_relay.operator_options import (
    decided,
    operator_option,
    plan_option,
    reason_option,
)
from outbox_saga_relay.printing import print_rows
from outbox_saga_relay.programs import load_service

revision_option = click.option(
    "--revision",
    type=click.IntRange(min=0),
    metavar="N",
    help="The one at which you saw it, as `saga show` and --plan print it. Required, but for "
    "--plan; where the saga has moved on since, nothing is done.",
)

Act = Callable[[SagaOperations, Instance], Awaitable[None]]


def _options(*, step: bool) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        found = [plan_option, revision_option, reason_option, operator_option]
        if step:
            found.append(click.argument("step"))
        found += [click.argument("id_", metavar="ID", type=click.UUID), click.argument("service")]
        for option in found:
            command = option(command)
        return command

    return add


@click.command()
@_options(step=True)
@click.option(
    "--new-key",
    is_flag=True,
    help="Under a new idempotency key: only where the other side certainly has not acted.",
)
def retry(*, step: str, new_key: bool, **told: Any) -> None:
    """Try STEP, which is stuck, again: with all its attempts, under the same idempotency key."""
    _decide(
        Intervention("retry", step, told["operator"], new_key=new_key),
        lambda decision: lambda sagas, seen: sagas.retry(seen, step, decision, new_key=new_key),
        **told,
    )


@click.command()
@_options(step=True)
def skip(*, step: str, **told: Any) -> None:
    """Go on without STEP, which is stuck, or without its compensation; what it did stays."""
    _decide(
        Intervention("skip", step, told["operator"]),
        lambda decision: lambda sagas, seen: sagas.skip(seen, step, decision),
        **told,
    )


@click.command("mark-done")
@_options(step=True)
@click.option("--data", metavar="JSON", help="What the step would have returned.")
def mark_done(*, step: str, data: str | None, **told: Any) -> None:
    """Take STEP, which is stuck, or its compensation as done by other means; say by which in
    --reason.
    """
    returned = _object(data)
    _decide(
        Intervention("mark_done", step, told["operator"], returned),
        lambda decision: lambda sagas, seen: sagas.mark_done(seen, step, decision, returned),
        **told,
    )


@click.command()
@_options(step=False)
def cancel(**told: Any) -> None:
    """Undo a running saga whose pivot was not carried out; what runs settles first."""
    _decide(
        Intervention("cancel", None, told["operator"]),
        lambda decision: lambda sagas, seen: sagas.cancel(seen, decision),
        **told,
    )


@click.command()
@_options(step=False)
def resume(**told: Any) -> None:
    """Try every stuck step of a saga again."""
    _decide(
        Intervention("resume", None, told["operator"]),
        lambda decision: lambda sagas, seen: sagas.resume(seen, decision),
        **told,
    )


ACTIONS = (retry, skip, mark_done, cancel, resume)


def _object(data: str | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.UsageError('--data is no JSON object; write it as in \'{"receipt": "17"}\'')
    return found


def _decide(
    action: Intervention,
    act: Callable[[Any], Act],
    *,
    service: str,
    id_: UUID,
    operator: str | None,
    reason: str | None,
    revision: int | None,
    only_plan: bool,
) -> None:
    if revision is None and not only_plan:
        raise click.UsageError(
            "say at which revision you saw the saga, by --revision: `outbox-saga saga show` and "
            "--plan print it"
        )
    loaded = load_service(service)

    async def decide() -> None:
        sagas = SagaOperations(loaded.database, loaded.sagas)
        try:
            seen, _ = await sagas.show(id_)
            if revision is not None:
                seen = replace(seen, revision=revision)  # as the person saw it, not as it is now
            if only_plan:
                await _plan(sagas, seen, action)
                return
            await act(decided(operator, reason))(sagas, seen)
            click.echo(f"{id_}: {action.kind.replace('_', ' ')}", err=True)
        finally:
            await loaded.close()

    asyncio.run(decide())


async def _plan(sagas: SagaOperations, seen: Instance, action: Intervention) -> None:
    plan = await sagas.plan(seen, action)
    rows = [("at", "revision", "", str(seen.revision))]
    rows += [("history", e.transition, e.step or "", e.detail or "") for e in plan.entries]
    for each in plan.todo:
        direction = getattr(each, "direction", "ask")
        rows.append(("then", type(each).__name__.lower(), each.step, direction))
    if plan.leased:
        told = "what follows depends on what the process that has it now reports"
        rows.append(("then", "leased", "", told))
    print_rows(("what", "which", "step", "how"), rows)
