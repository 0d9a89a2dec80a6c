"""`outbox-saga breaker`: which other sides are not called now, and closing one by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from outbox_saga.errors import SeenChanged
from outbox_saga.saga.breakers import Breakers, Stand
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import opened_async
from outbox_saga_relay.operator_options import (
    decided,
    operator_option,
    plan_option,
    reason_option,
)
from outbox_saga_relay.printing import json_option, print_json, print_rows

T = TypeVar("T")


@click.group()
def breaker() -> None:
    """Look at circuit breakers, or close one."""


@breaker.command("list")
@database_url_option
@schema_option
@json_option
def list_(*, database_url: str, schema: str | None, as_json: bool) -> None:
    """List the breakers that have ever counted a failure, by name; any other is closed."""
    found = _ask(database_url, schema, lambda breakers: breakers.list())
    if as_json:
        print_json({"breakers": [_shown(stand) for stand in found]})
        return
    print_rows(
        ("breaker", "state", "failures", "until", "trips", "opened"),
        [
            (
                stand.name,
                stand.state,
                str(stand.failures),
                "" if stand.until is None else stand.until.isoformat(timespec="seconds"),
                str(stand.trips),
                "" if stand.opened_at is None else stand.opened_at.isoformat(timespec="seconds"),
            )
            for stand in found
        ],
    )


@breaker.command()
@plan_option
@reason_option
@operator_option
@database_url_option
@schema_option
@click.argument("name")
def reset(
    *,
    database_url: str,
    schema: str | None,
    name: str,
    operator: str | None,
    reason: str | None,
    only_plan: bool,
) -> None:
    """Close the breaker called NAME: no failure is counted, and calls go again."""
    if only_plan:
        found = _ask(database_url, schema, lambda breakers: breakers.list())
        stand = next((stand for stand in found if stand.name == name), None)
        if stand is None:
            raise SeenChanged(
                f"no breaker called {name!r} has ever counted a failure here; list them"
            )
        print_rows(
            ("breaker", "from", "failures", "to"),
            [(name, stand.state, str(stand.failures), "closed")],
        )
        return
    decision = decided(operator, reason)
    _ask(database_url, schema, lambda breakers: breakers.reset(name, decision))
    click.echo(f"breaker {name}: reset", err=True)


def _shown(stand: Stand) -> dict[str, Any]:
    return {
        "name": stand.name,
        "state": stand.state,
        "failures": stand.failures,
        "until": None if stand.until is None else stand.until.isoformat(),
        "probing": stand.probing,
        "trips": stand.trips,
        "opened_at": None if stand.opened_at is None else stand.opened_at.isoformat(),
    }


def _ask(database_url: str, schema: str | None, question: Callable[[Breakers], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with opened_async(database_url, schema) as database:
            return await question(Breakers(database))

    return asyncio.run(ask())
