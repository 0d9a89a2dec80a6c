"""`outbox-saga prune`: what may be forgotten goes, once or for as long as it runs."""

from __future__ import annotations

import asyncio

import click

from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.housekeeping import ARCHIVE_WINDOW, INBOX_WINDOW, Housekeeping, Pruned
from outbox_saga_relay.logs import log_to_stderr
from outbox_saga_relay.opened_database import opened
from outbox_saga_relay.operator_options import stoppable, warn
from outbox_saga_relay.printing import json_option, print_fields, print_json
from outbox_saga_relay.programs import until_signalled
from outbox_saga_relay.times import STRETCH
from outbox_saga_relay.typed import refuse_typed


@click.command()
@database_url_option
@schema_option
@click.option(
    "--archive-window",
    type=STRETCH,
    envvar="OUTBOX_SAGA_ARCHIVE_WINDOW",
    default=ARCHIVE_WINDOW,
    show_default="3d",
    show_envvar=True,
    help="How long published messages can be sent again; 0 keeps none.",
)
@click.option(
    "--inbox-window",
    type=STRETCH,
    envvar="OUTBOX_SAGA_INBOX_WINDOW",
    default=INBOX_WINDOW,
    show_default="30d",
    show_envvar=True,
    help="How long the inbox remembers; a message that comes again later is handled again.",
)
@click.option(
    "--saga-window",
    type=STRETCH,
    envvar="OUTBOX_SAGA_SAGA_WINDOW",
    help="How long sagas that have ended for good are kept, with their history; from 1d.  "
    "[default: for ever]",
)
@click.option(
    "--keyed-sagas",
    is_flag=True,
    help="Those that were started under a business key go, too: only if none is ever started "
    "again under the same one.",
)
@click.option(
    "--barrier-window",
    type=STRETCH,
    envvar="OUTBOX_SAGA_BARRIER_WINDOW",
    help="How long a participant remembers commands; longer than any saga may last, a stuck one "
    "too; from 1d.  [default: for ever]",
)
@click.option("--keep-inbox", is_flag=True, help="The inbox remembers for ever.")
@click.option("--batch", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option(
    "--pause", type=STRETCH, default=0.1, show_default="0.1s", help="Between two batches."
)
@click.option(
    "--interval", type=STRETCH, default=600.0, show_default="10m", help="Between two rounds."
)
@click.option("--once", is_flag=True, help="One round, then end.")
@click.option("--plan", "only_plan", is_flag=True, help="Show what would go; remove nothing.")
@json_option
def prune(
    database_url: str,
    schema: str | None,
    archive_window: float,
    inbox_window: float,
    saga_window: float | None,
    barrier_window: float | None,
    batch: int,
    pause: float,
    interval: float,
    *,
    keyed_sagas: bool,
    keep_inbox: bool,
    once: bool,
    only_plan: bool,
    as_json: bool,
) -> None:
    """Remove what may be forgotten, and nothing else.

    Notes of handled messages, archived messages, and dead processes past their windows, and, if
    you give them windows, sagas that have ended and notes of commands; batch by batch, by one
    process at a time. Never a message that was not published, whatever its age.
    Goes on until SIGTERM unless you pass --once.
    """
    if once and only_plan:
        raise click.UsageError("give --plan or --once, not both")
    if keyed_sagas and saga_window is None:
        raise click.UsageError("--keyed-sagas says which go by --saga-window; give that, too")
    if keep_inbox:
        refuse_typed("inbox_window", why="with --keep-inbox it remembers for ever")
    if once:
        refuse_typed("interval", why="--once is one round")
    if only_plan:
        refuse_typed("batch", "pause", "interval", why="--plan removes nothing")
    with opened(database_url, schema) as database:
        keeping = Housekeeping(
            database,
            archive_window=archive_window,
            inbox_window=None if keep_inbox else inbox_window,
            saga_window=saga_window,
            keyed_sagas=keyed_sagas,
            barrier_window=barrier_window,
            batch=batch,
            pause=pause,
            interval=interval,
        )
        if only_plan:
            _print(keeping.plan(), as_json=as_json)
            return
        if not once:
            log_to_stderr("info")
            until_signalled(keeping.run)
            return
        pruned, stopped = asyncio.run(_round(keeping))
    _print(pruned, as_json=as_json)
    if stopped:
        warn("stopped; the same command again does the rest")
        raise click.exceptions.Exit(1)


async def _round(keeping: Housekeeping) -> tuple[Pruned, bool]:
    """One round, and whether a signal ended it early."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with stoppable(lambda: loop.call_soon_threadsafe(stop.set)):
        return await keeping.run_once(stop), stop.is_set()


def _print(pruned: Pruned, *, as_json: bool) -> None:
    told = {
        "inbox": pruned.inbox,
        "archive": pruned.archive,
        "processes": pruned.processes,
        "replies": pruned.replies,
        "sagas": pruned.sagas,
        "barriers": pruned.barriers,
        "days_made": [day.isoformat() for day in pruned.days_made],
        "days_dropped": [day.isoformat() for day in pruned.days_dropped],
    }
    if as_json:
        print_json(told)
        return
    print_fields(
        [
            (name.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
            for name, value in told.items()
        ]
    )
