"""`outbox-saga audit`: what operators did, when, and why."""

from __future__ import annotations

import click

from outbox_saga.database import READ_ONLY
from outbox_saga.queries.operators import Noted, noted_actions
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import opened
from outbox_saga_relay.printing import json_option, print_json, print_rows


@click.command()
@database_url_option
@schema_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
def audit(*, database_url: str, schema: str | None, limit: int, as_json: bool) -> None:
    """List what operators did, the latest first: every replay, discard, unpark and retry."""
    with opened(database_url, schema) as database:
        engine = database.engine.execution_options(**{READ_ONLY: True})
        with engine.begin() as connection:
            actions = noted_actions(connection, database.tables, limit=limit)
    if as_json:
        print_json({"actions": [_shown(action) for action in actions]})
        return
    print_rows(
        ("at", "operator", "action", "subject", "reason"),
        [
            (a.at.isoformat(timespec="seconds"), a.operator, a.action, a.subject, a.reason)
            for a in actions
        ],
    )


def _shown(action: Noted) -> dict[str, object]:
    return {
        "id": str(action.id),
        "at": action.at.isoformat(),
        "operator": action.operator,
        "action": action.action,
        "subject": action.subject,
        "reason": action.reason,
        "detail": dict(action.detail),
    }
