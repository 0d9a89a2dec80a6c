"""What is told at the end: one JSON object, a table on a terminal, plain lines in a pipe."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from outbox_saga_relay.demo.driver import Outcome


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The figures, the checks, and each kill."""
    facts, kills = outcome.facts, outcome.kills
    return {
        "orders": len(facts.orderings),
        "completed": len(facts.orders_that("completed")),
        "compensated": len(facts.orders_that("compensated")),
        "stuck": len(facts.orders_that("stuck")),
        "refunds": len(facts.ledger["refunds"]),
        "cancellations": sum(row["state"] == "cancelled" for row in facts.orders),
        "users": len(facts.users),
        "published": facts.published,
        "handled": facts.outbox.handled,
        "duplicates": facts.duplicates,
        "kills": len(kills),
        "kills_in_flight": sum(kill.in_flight > 0 for kill in kills),
        "killed": [kill.as_json() for kill in kills],
        "seconds": outcome.seconds,
        "checks": [check.as_json() for check in outcome.checks],
    }


_ROWS = {
    "orders": "orders",
    "completed": "completed",
    "compensated": "compensated",
    "stuck": "stuck",
    "refunds": "refunds",
    "cancellations": "cancellations",
    "users": "users onboarded",
    "published": "events published",
    "handled": "events handled",
    "duplicates": "duplicates dropped",
    "kills": "processes killed",
    "kills_in_flight": "with work in flight",
    "seconds": "seconds",
}


def print_table(outcome: Outcome, console: Console) -> None:
    """For people: the figures, what was in flight at each kill, and the checks."""
    figures = as_json(outcome)
    table = Table(title="outbox-saga demo", show_header=False, min_width=44)
    for name, label in _ROWS.items():
        table.add_row(label, f"[bold]{figures[name]}[/bold]")
    console.print(table)
    if outcome.kills:
        killed = Table(title="kills", header_style="dim")
        for column in ("second", "sagas ended", "process", "in flight"):
            killed.add_column(column)
        for kill in outcome.kills:
            killed.add_row(
                f"{kill.at:.1f}", str(kill.after), kill.process, f"{kill.in_flight} {kill.what}"
            )
        console.print(killed)
    for check in outcome.checks:
        mark = "[green]ok[/green]  " if check.ok else "[bold red]FAIL[/bold red]"
        console.print(f"{mark} {escape(check.name)} [dim]({escape(check.detail)})[/dim]")


def plain_lines(outcome: Outcome) -> list[str]:
    """For pipes: a tab between name and value."""
    figures = as_json(outcome)
    lines = [f"{label}\t{figures[name]}" for name, label in _ROWS.items()]
    lines += [f"kill\t{k.at:.1f} s\t{k.process}\t{k.in_flight} {k.what}" for k in outcome.kills]
    return lines + [
        f"{'ok' if check.ok else 'FAIL'}\t{check.name}\t{check.detail}" for check in outcome.checks
    ]
