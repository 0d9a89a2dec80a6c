"""`outbox-saga doctor`: what is wrong with a database or a broker, and what to do about it."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from outbox_saga.database import Database
from outbox_saga.database_urls import shown_url
from outbox_saga_relay.database_options import schema_option
from outbox_saga_relay.doctor import SUBJECTS, Finding, Report, examine_broker, examine_database
from outbox_saga_relay.doctor.findings import LEVELS
from outbox_saga_relay.printing import json_option, print_json, print_rows
from outbox_saga_relay.programs import load_service
from outbox_saga_relay.roles import ROLES
from outbox_saga_relay.typed import is_typed, refuse_typed

_COLOURS = {"error": "red", "warning": "yellow", "unknown": "magenta", "info": "blue"}
_WIDTH = 99


@click.command()
@click.argument("service", required=False)
@click.option(
    "--database-url",
    "-d",
    envvar="OUTBOX_SAGA_DATABASE_URL",
    metavar="URL",
    show_envvar=True,
    help="The database to look at, without a SERVICE.",
)
@click.option(
    "--broker",
    envvar="OUTBOX_SAGA_BROKER",
    metavar="URL",
    show_envvar=True,
    help="The broker to look at, without a SERVICE.",
)
@schema_option
@click.option(
    "--role",
    type=click.Choice(ROLES),
    help="Compare the user's rights with what this role needs (see `db roles`).",
)
@click.option("--strict", is_flag=True, help="Exit 1 at a warning, or what is unknown, too.")
@click.option("--list", "only_list", is_flag=True, help="List every check, and make none.")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    service: str | None,
    database_url: str | None,
    broker: str | None,
    schema: str | None,
    role: str | None,
    *,
    strict: bool,
    only_list: bool,
    as_json: bool,
) -> None:
    """Look for what would lose, double or hold up messages and sagas.

    In the database and the broker of SERVICE (module:attribute), or in those of --database-url
    and --broker. Run it as the user your programs have. It changes nothing, and exits 1 if it
    finds an error.
    """
    if only_list:
        if service is not None:
            raise click.UsageError("leave out SERVICE: --list looks at nothing")
        told = ("database_url", "broker", "schema", "role", "strict")
        refuse_typed(*told, why="--list looks at nothing")
        _print_checks(as_json=as_json)
        return
    typed = [name for name in ("database_url", "broker", "schema") if is_typed(name)]
    if service is not None and typed:
        raise click.UsageError(
            "give SERVICE, which knows its database, broker and schema, or --database-url and "
            "--broker, not both"
        )
    if service is None and database_url is None and broker is None:
        raise click.UsageError(
            "give SERVICE (module:attribute), or --database-url, --broker or both"
        )
    consumers: dict[str, tuple[str, ...]] = {}
    database: Database | None
    if service is not None:
        loaded = load_service(service)
        database, broker, consumers = loaded.database, loaded.broker, loaded.handlers.consumers()
    else:
        database = Database(database_url, schema=schema) if database_url is not None else None
    if role is not None and (database is None or database.url.get_backend_name() == "sqlite"):
        raise click.UsageError("--role is about a database that has users")
    found = Report((), ())
    if database is not None:
        found += examine_database(database, role=role)
        asyncio.run(database.close())
    if broker is not None:
        found += asyncio.run(examine_broker(broker, consumers=consumers))
    where = {
        "database": shown_url(database.url) if database is not None else None,
        "broker": _shown_broker(broker),
    }
    if as_json:
        print_json({**where, **_as_json(found)})
    else:
        _print_findings(found)
    failed = not found.ok or (strict and found.count("warning") + found.count("unknown") > 0)
    ctx.exit(1 if failed else 0)


def _shown_broker(url: str | None) -> str | None:
    """The broker's URL without user, password and options: NATS takes a token as a user."""
    if url is None or "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def _as_json(found: Report) -> dict[str, Any]:
    return {
        "ok": found.ok,
        **{f"{level}s": found.count(level) for level in LEVELS},
        "checks": list(found.checks),
        "findings": [
            {
                "check": finding.check,
                "level": finding.level,
                "what": finding.what,
                "why": finding.why,
                "do": finding.do,
            }
            for finding in found.findings
        ],
    }


def _print_findings(found: Report) -> None:
    if sys.stdout.isatty():
        for checks, finding in _grouped(found):
            _print_finding(checks, finding)
    else:
        names = ("level", "check", "what", "why", "do")
        print_rows(names, [(f.level, f.check, f.what, f.why, f.do) for f in found.findings])
    counts = ", ".join(f"{found.count(level)} {level}" for level in LEVELS)
    click.echo(f"{len(found.checks)} checks: {counts}", err=True)


def _grouped(found: Report) -> Iterator[tuple[list[str], Finding]]:
    """Findings for people: of those that say the same, one, with the checks that say it."""
    groups: dict[tuple[str, str, str], tuple[list[str], Finding]] = {}
    for finding in found.findings:
        key = (finding.level, finding.what, finding.do)
        groups.setdefault(key, ([], finding))[0].append(finding.check)
    yield from groups.values()


def _print_finding(checks: list[str], finding: Finding) -> None:
    head = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level], bold=True)
    names = textwrap.wrap(", ".join(dict.fromkeys(checks)), _WIDTH - 8)
    click.echo(f"{head}{names[0]}")
    parts = [("", line) for line in names[1:]]
    parts.append(("", finding.what))
    if len(checks) == 1:
        parts.append(("why: ", finding.why))
    parts.append(("do:  ", finding.do))
    for label, text in parts:
        click.echo(
            textwrap.fill(
                label + text,
                _WIDTH,
                initial_indent=" " * 8,
                subsequent_indent=" " * (8 + len(label)),
            )
        )


def _print_checks(*, as_json: bool) -> None:
    listed = [
        (check.id, check.levels, subject, check.looks_at)
        for subject, checks in SUBJECTS.items()
        for check in checks
    ]
    if as_json:
        names = ("check", "levels", "subject", "looks_at")
        print_json({"checks": [dict(zip(names, each, strict=True)) for each in listed]})
        return
    print_rows(
        ("check", "levels", "looks at"),
        [(id_, ", ".join(levels), looks_at) for id_, levels, _, looks_at in listed],
    )
