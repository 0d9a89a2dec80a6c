"""`outbox-saga waiting`: messages that handlers failed on, from the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from outbox_saga.database import Database
from outbox_saga.errors import SeenChanged
from outbox_saga.waiting_messages import State, WaitingMessage, WaitingMessages
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.operator_options import decided, operator_option, reason_option
from outbox_saga_relay.printing import json_option, print_json, print_rows

T = TypeVar("T")


def _actor_options(command: Any) -> Any:
    for option in (
        reason_option,
        operator_option,
        click.argument("positions", nargs=-1, required=True, type=click.IntRange(min=1)),
        schema_option,
        database_url_option,
    ):
        command = option(command)
    return command


@click.group()
def waiting() -> None:
    """Look at messages that wait for their handlers, try them again, or discard them."""


@waiting.command("list")
@database_url_option
@schema_option
@click.option("--consumer", help="Only this consumer's.")
@click.option("--key", help="Only those in the queue of this key.")
@click.option(
    "--state",
    type=click.Choice(("due", "behind", "dead")),
    help="due: tried again at a moment; behind: an earlier one of its key waits; dead: until "
    "somebody decides.",
)
@click.option("--after", type=int, default=0, help="Begin behind this place.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
def list_(
    *,
    database_url: str,
    schema: str | None,
    consumer: str | None,
    key: str | None,
    state: State | None,
    after: int,
    limit: int,
    as_json: bool,
) -> None:
    """List waiting messages in the order of their places, without what is in them."""
    found = _ask(
        database_url,
        schema,
        lambda messages: messages.list(
            consumer=consumer, key=key, state=state, after=after, limit=limit
        ),
    )
    if as_json:
        print_json({"messages": [_shown(seen) for seen in found]})
        return
    print_rows(
        ("place", "consumer", "message", "key", "state", "attempts", "error", "class"),
        [
            (
                str(seen.position),
                seen.consumer,
                str(seen.message_id),
                _printable(seen.key or ""),
                seen.state,
                str(seen.attempts),
                seen.error_code,
                seen.error_class or "",
            )
            for seen in found
        ],
    )


@waiting.command()
@database_url_option
@schema_option
@click.argument("position", type=click.IntRange(min=1))
@click.option("--body", "with_body", is_flag=True, help="Show the body, too.")
@json_option
def show(
    *, database_url: str, schema: str | None, position: int, with_body: bool, as_json: bool
) -> None:
    """Show the message at a place, with its error and where it was raised."""
    seen = _ask(database_url, schema, lambda messages: messages.show(position))
    shown = _shown(seen)
    shown |= {"headers": seen.headers, "trace": seen.trace, "error": seen.error}
    if with_body:
        shown["body"] = (seen.body or b"").decode("utf-8", "backslashreplace")
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        lines = _printable("" if value is None else str(value)).splitlines() or [""]
        click.echo(f"{name:<14}{lines[0]}")
        for line in lines[1:]:
            click.echo(f"{'':<14}{line}")


@waiting.command()
@_actor_options
def retry(
    *,
    database_url: str,
    schema: str | None,
    positions: tuple[int, ...],
    operator: str,
    reason: str | None,
) -> None:
    """Give the messages at these places one more attempt now, or when it is their turn."""
    decision = decided(operator, reason)

    _act(database_url, schema, positions, "tried again", lambda m, seen: m.retry(seen, decision))


@waiting.command()
@_actor_options
@click.confirmation_option(prompt="They are gone for good. Discard them?")
def discard(
    *,
    database_url: str,
    schema: str | None,
    positions: tuple[int, ...],
    operator: str,
    reason: str | None,
) -> None:
    """Discard the messages at these places; the later ones of their keys go on without them."""
    decision = decided(operator, reason)

    _act(database_url, schema, positions, "discarded", lambda m, seen: m.discard(seen, decision))


def _act(
    database_url: str,
    schema: str | None,
    positions: tuple[int, ...],
    done: str,
    verb: Callable[[WaitingMessages, WaitingMessage], Awaitable[None]],
) -> None:
    """Each by itself: of several, some may have been acted on before; the others are."""

    async def act(messages: WaitingMessages) -> int:
        changed = 0
        for position in positions:
            try:
                await verb(messages, await messages.show(position))
            except SeenChanged as error:
                if len(positions) == 1:
                    raise
                click.echo(f"{position}: {error}", err=True)
                changed += 1
            else:
                click.echo(f"{position}: {done}", err=True)
        return changed

    if _ask(database_url, schema, act):
        raise click.exceptions.Exit(1)


def _ask(
    database_url: str, schema: str | None, question: Callable[[WaitingMessages], Awaitable[T]]
) -> T:
    async def ask() -> T:
        database = Database(database_url, schema=schema, pool_size=1)
        try:
            return await question(WaitingMessages(database))
        finally:
            await database.close()

    return asyncio.run(ask())


def _shown(seen: WaitingMessage) -> dict[str, Any]:
    return {
        "position": seen.position,
        "consumer": seen.consumer,
        "message_id": str(seen.message_id),
        "topic": seen.topic,
        "key": seen.key,
        "holds_up_key": seen.holds_up_key,
        "state": seen.state,
        "arrived_at": seen.arrived_at.isoformat(),
        "until": None if seen.until is None else seen.until.isoformat(),
        "failed_at": None if seen.failed_at is None else seen.failed_at.isoformat(),
        "attempts": seen.attempts,
        "error_code": seen.error_code,
        "error_class": seen.error_class,
        "being_handled": seen.being_handled,
    }


def _printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
