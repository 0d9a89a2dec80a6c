"""`outbox-saga status`: what waits, for whom, and who is at work."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from outbox_saga.database import READ_ONLY, Database
from outbox_saga.queries.overview import Count, Overview, Working, overview
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import opened
from outbox_saga_relay.operator_options import stoppable
from outbox_saga_relay.printing import json_option, print_fields, print_json, print_rows
from outbox_saga_relay.times import spoken


@click.command()
@database_url_option
@schema_option
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Look again and again, until SIGINT or SIGTERM.",
)
@json_option
def status(*, database_url: str, schema: str | None, every: float | None, as_json: bool) -> None:
    """Show what waits, for whom, and who is at work: numbers and names, no payload.

    On PostgreSQL a relay names the server process (pid) whose old transaction holds its low-water
    mark: while that stays open, publishing gets slower.
    """
    with opened(database_url, schema) as database, stoppable() as stop:
        _show(_look(database), as_json=as_json)
        while every is not None and not stop.wait(every):
            if sys.stdout.isatty():
                click.clear()
            _show(_look(database), as_json=as_json)


def _look(database: Database) -> Overview:
    engine = database.engine.execution_options(**{READ_ONLY: True})
    with engine.begin() as connection:
        return overview(connection, database.tables, database.clock)


def _show(found: Overview, *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    first = "" if found.first_waits is None else f", the first for {spoken(found.first_waits)}"
    print_fields(
        (
            ("outbox", _said(found.outbox) + first),
            ("delayed", f"{_said(found.delayed)}, {_said(found.due)} of them due"),
            ("keys that wait for another attempt", _said(found.retried_keys)),
            ("keys that are parked", _said(found.parked_keys)),
            ("dead letters no broker took", _said(found.dead_letters)),
        )
    )
    if found.handling:
        _next_table()
        print_rows(
            ("consumer", "tried again", "behind", "dead"),
            [(h.consumer, *map(_at_least, (h.again, h.behind, h.dead))) for h in found.handling],
        )
    _next_table()
    if not found.processes:
        click.secho("no relay has told of itself", fg="yellow", err=True)
        return
    print_rows(
        ("process", "service", "host", "pid", "seen", "says"), [_row(p) for p in found.processes]
    )


def _next_table() -> None:
    if sys.stdout.isatty():
        click.echo()


def _said(count: Count) -> str:
    return f"more than {count.rows:,}" if count.more else f"{count.rows:,}"


def _at_least(count: Count) -> str:
    return f"{count.rows:,} or more" if count.more else f"{count.rows:,}"


def _row(process: Working) -> tuple[str, ...]:
    says = _relay(process.detail) if process.kind == "relay" else _plain(process.detail)
    seen = f"{spoken(process.seen)} ago"
    return (
        process.kind,
        process.service,
        process.host,
        str(process.pid),
        seen if process.alive else f"{seen}, lease over",
        says,
    )


def _relay(told: Any) -> str:
    parts = [
        f"{told.get('partitions', 0)} partitions",
        f"{told.get('published', 0):,} published",
        f"{told.get('dead', 0):,} dead letters",
        f"{told.get('outages', 0):,} outages",
    ]
    if (age := told.get("oldest_pending_seconds")) is not None:
        parts.append(f"oldest pending {spoken(age)}")
    if (transaction := told.get("mark_waits_for_transaction")) is not None:
        pid = told.get("mark_waits_for_pid")
        who = f"pid {pid}" if pid is not None else f"transaction {transaction}"
        parts.append(f"mark held by {who}")
    return ", ".join(parts)


def _plain(told: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in told.items())
