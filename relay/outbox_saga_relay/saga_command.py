"""`outbox-saga saga`: look at sagas, and look over their definitions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import click

from outbox_saga.instances import Instance
from outbox_saga.saga.graph import mermaid, remarks
from outbox_saga.saga.operating import Happening, SagaOperations
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import opened_async
from outbox_saga_relay.printing import json_option, print_fields, print_json, print_rows
from outbox_saga_relay.programs import load_service
from outbox_saga_relay.saga_actions import ACTIONS
from outbox_saga_relay.saga_check import check
from outbox_saga_relay.saga_figures import figures_

T = TypeVar("T")


@click.group()
def saga() -> None:
    """Look at sagas, and decide about those that are stuck."""


for action in (*ACTIONS, check, figures_):
    saga.add_command(action)


@saga.command("list")
@database_url_option
@schema_option
@click.option("--name", help="Only of this saga.")
@click.option(
    "--state", type=click.Choice(("running", "compensating", "completed", "compensated", "stuck"))
)
@click.option("--business-key", help="Only the one that was started with it.")
@click.option("--correlation-id", help="Only those of this conversation.")
@click.option("--after", type=click.UUID, help="Begin behind this id.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
def list_(*, database_url: str, schema: str | None, as_json: bool, **wanted: Any) -> None:
    """List sagas in the order of their ids, without their data."""
    found = _ask(database_url, schema, lambda sagas: sagas.list(**wanted))
    if as_json:
        print_json({"sagas": [_shown(seen) for seen in found]})
        return
    print_rows(
        ("id", "saga", "version", "business key", "state", "revision", "reason"),
        [
            (
                str(seen.id),
                seen.name,
                str(seen.version),
                seen.business_key or "",
                seen.state.status,
                str(seen.revision),
                _why(seen) or "",
            )
            for seen in found
        ],
    )


@saga.command()
@database_url_option
@schema_option
@click.argument("id_", metavar="ID", type=click.UUID)
@click.option("--data", "with_data", is_flag=True, help="Show its data, too.")
@json_option
def show(
    *, database_url: str, schema: str | None, id_: UUID, with_data: bool, as_json: bool
) -> None:
    """Show one saga: where each step is, and all that happened to it."""
    seen, history = _ask(database_url, schema, lambda sagas: sagas.show(id_))
    shown = _shown(seen) | ({"data": dict(seen.state.data)} if with_data else {})
    steps = {name: _step(step) for name, step in seen.state.steps.items()}
    if as_json:
        print_json(shown | {"steps": steps, "history": [_happened(h) for h in history]})
        return
    print_fields([(name, "" if value is None else str(value)) for name, value in shown.items()])
    click.echo()
    print_rows(
        ("step", "phase", "attempts", "undo attempts", "error"),
        [
            (name, *(str("" if step[k] is None else step[k]) for k in _STEP_COLUMNS))
            for name, step in steps.items()
        ],
    )
    click.echo()
    print_rows(("at", "transition", "step", "attempt", "code", "detail"), _history_rows(history))


@saga.command()
@click.argument("service")
@click.argument("name", required=False)
def graph(*, service: str, name: str | None) -> None:
    """Draw the sagas of SERVICE (module:attribute), or the one called NAME, as Mermaid charts."""
    for definition in load_service(service).sagas:
        if name in (None, definition.name):
            click.echo(mermaid(definition), nl=False)


@saga.command()
@click.argument("service")
def lint(*, service: str) -> None:
    """Look over the sagas of SERVICE (module:attribute) for what no rule forbids, and what is
    mostly a mistake; exit code 1 if there is any.

    A definition that breaks a rule is refused when the service is loaded, and the rule is named.
    """
    found = [(d.name, remark) for d in load_service(service).sagas for remark in remarks(d)]
    print_rows(("saga", "step", "remark"), [(n, r.step, r.text) for n, r in found])
    if found:
        raise click.exceptions.Exit(1)


_STEP_COLUMNS = ("phase", "attempts", "undo_attempts", "error")


def _ask(
    database_url: str, schema: str | None, question: Callable[[SagaOperations], Awaitable[T]]
) -> T:
    async def ask() -> T:
        async with opened_async(database_url, schema) as database:
            return await question(SagaOperations(database))

    return asyncio.run(ask())


def _shown(seen: Instance) -> dict[str, Any]:
    return {
        "id": str(seen.id),
        "saga": seen.name,
        "version": seen.version,
        "business_key": seen.business_key,
        "correlation_id": seen.correlation_id,
        "state": seen.state.status,
        "revision": seen.revision,
        "reason": seen.state.reason,
        "parked": seen.state.parked,
        "started_at": None if seen.started_at is None else seen.started_at.isoformat(),
    }


def _why(seen: Instance) -> str | None:
    parked = seen.state.parked
    return seen.state.reason if parked is None else f"parked: {parked}"


def _step(step: Any) -> dict[str, Any]:
    return {name: getattr(step, name) for name in _STEP_COLUMNS}


def _happened(happening: Happening) -> dict[str, Any]:
    entry = happening.entry
    return {
        "at": happening.at.isoformat(),
        "revision": happening.revision,
        "transition": entry.transition,
        "step": entry.step,
        "attempt": entry.attempt,
        "code": entry.code,
        "detail": entry.detail,
        "started_at": None if entry.started_at is None else entry.started_at.isoformat(),
    }


def _history_rows(history: Sequence[Happening]) -> list[tuple[str, ...]]:
    return [
        (
            happening.at.isoformat(timespec="milliseconds"),
            happening.entry.transition,
            happening.entry.step or "",
            "" if happening.entry.attempt is None else str(happening.entry.attempt),
            happening.entry.code or "",
            happening.entry.detail or "",
        )
        for happening in history
    ]
