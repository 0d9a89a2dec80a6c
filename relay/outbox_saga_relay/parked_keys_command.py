"""`outbox-saga dead-letter keys`: the keys that are parked, and for which letter."""

from __future__ import annotations

import click

from outbox_saga.dead_letters import DeadLetters
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import looking, opened
from outbox_saga_relay.printing import json_option, print_json, print_rows


@click.command(name="keys")
@database_url_option
@schema_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--after", type=int, metavar="POSITION", help="The page after this one's last.")
@json_option
def keys(
    database_url: str, schema: str | None, limit: int, after: int | None, *, as_json: bool
) -> None:
    """List the keys that are parked, in the order of the positions at which they are.

    One without a letter waits though its letter was discarded: `unpark` lets it go on.
    """
    with opened(database_url, schema) as database, looking(database) as connection:
        found = DeadLetters(database).keys(connection, after=after, limit=limit)
    following = found[-1].position if len(found) >= limit else None
    if as_json:
        told = [
            {
                "position": each.position,
                "key": each.key,
                "letter": None if each.letter is None else str(each.letter),
                "error_code": each.error_code,
            }
            for each in found
        ]
        print_json({"keys": told, "after": following})
        return
    print_rows(
        ("position", "key", "letter", "code"),
        [
            (
                str(each.position),
                each.key,
                "-" if each.letter is None else str(each.letter),
                each.error_code,
            )
            for each in found
        ],
    )
    if following is not None:
        click.echo(f"the next page: --after {following}", err=True)
