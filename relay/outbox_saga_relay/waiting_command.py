"""`outbox-saga waiting`: messages that handlers failed on, from the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from outbox_saga.errors import SeenChanged
from outbox_saga.waiting_messages import State, WaitingMessage, WaitingMessages
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import opened_async
from outbox_saga_relay.operator_options import decided, operator_option, reason_option
from outbox_saga_relay.printing import json_option, print_json, print_rows

T = TypeVar("T")


def _actor_options(command: Any) -> Any:
    for option in (
        reason_option,
        operator_option,
        click.option(
            "--seen",
            metavar="VERSION",
            help="Only if it is as `list` showed it. For one place.",
        ),
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
        ("place", "consumer", "message", "key", "state", "attempts", "error", "class", "version"),
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
                seen.version,
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
    seen: str | None,
    operator: str | None,
    reason: str | None,
) -> None:
    """Give the messages at these places one more attempt now, or when it is their turn."""
    _refuse_seen_of_many(seen, positions)
    decision = decided(operator, reason)

    def act(messages: WaitingMessages, found: WaitingMessage) -> Awaitable[None]:
        return messages.retry(found, decision)

    _act(database_url, schema, positions, "tried again", act, seen=seen)


@waiting.command()
@_actor_options
@click.confirmation_option(prompt="They are gone for good. Discard them?")
def discard(
    *,
    database_url: str,
    schema: str | None,
    positions: tuple[int, ...],
    seen: str | None,
    operator: str | None,
    reason: str | None,
) -> None:
    """Discard the messages at these places; the later ones of their keys go on without them."""
    _refuse_seen_of_many(seen, positions)
    decision = decided(operator, reason)

    def act(messages: WaitingMessages, found: WaitingMessage) -> Awaitable[None]:
        return messages.discard(found, decision)

    _act(database_url, schema, positions, "discarded", act, seen=seen)


def _refuse_seen_of_many(seen: str | None, positions: tuple[int, ...]) -> None:
    if seen is not None and len(positions) != 1:
        raise click.UsageError("--seen is the version of one message: give one place")


def _act(
    database_url: str,
    schema: str | None,
    positions: tuple[int, ...],
    done: str,
    verb: Callable[[WaitingMessages, WaitingMessage], Awaitable[None]],
    *,
    seen: str | None,
) -> None:
    """Each by itself: of several, some may have been acted on before; the others are."""

    async def act(messages: WaitingMessages) -> int:
        changed = 0
        for position in positions:
            try:
                await verb(messages, await _found(messages, position, seen))
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


async def _found(messages: WaitingMessages, position: int, seen: str | None) -> WaitingMessage:
    found = await messages.show(position)
    if seen not in (None, found.version):
        raise SeenChanged(f"the message at {position} is not as you saw it; look again")
    return found


def _ask(
    database_url: str, schema: str | None, question: Callable[[WaitingMessages], Awaitable[T]]
) -> T:
    async def ask() -> T:
        async with opened_async(database_url, schema) as database:
            return await question(WaitingMessages(database))

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
        "version": seen.version,
    }


def _printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
