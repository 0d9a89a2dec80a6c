"""`outbox-saga demo`: its options, and what they start."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from outbox_saga.errors import ConfigurationError
from outbox_saga_relay.printing import json_option

# what the demo needs beyond the library itself, as modules
_NEEDED = ("aiosqlite", "httpx2", "nats", "rich")


@click.command()
@click.option(
    "--orders",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Take products, customers, orders and order lines from DIR's CSV files, in the sequence "
    "of orders.csv. [default: orders out of a seed]",
)
@click.option(
    "--count",
    type=click.IntRange(min=1, max=1_000_000),
    default=200,
    show_default=True,
    help="How many orders, when they come out of a seed.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1, max=500),
    default=8,
    show_default=True,
    metavar="N",
    help="Unfinished orders at the same time; with 1 the next starts when the last has ended.",
)
@click.option(
    "--kill",
    "kills",
    type=click.IntRange(min=0, max=1_000),
    default=5,
    show_default=True,
    metavar="N",
    help="SIGKILL relay, orchestrator and consumer processes, N times in all, and restart them.",
)
@click.option(
    "--faults",
    type=int,
    default=1,
    show_default=True,
    metavar="SEED",
    help="What goes wrong: declined cards, lost requests, lost and late replies, refused mails, "
    "orders that cannot be written down. The seed also draws orders and the moments of kills.",
)
@click.option("--no-faults", is_flag=True, help="Nothing goes wrong but for kills.")
@click.option("--postgres", is_flag=True, help="On a private PostgreSQL server, not on SQLite.")
@click.option("--nats", is_flag=True, help="Over a private NATS server, not the local broker.")
@json_option
@click.pass_context
def demo(
    ctx: click.Context,
    *,
    orders: Path | None,
    count: int,
    concurrency: int,
    kills: int,
    faults: int,
    no_faults: bool,
    postgres: bool,
    nats: bool,
    as_json: bool,
) -> None:
    r"""Watch a shop whose processes are being killed.

    Customers are onboarded and orders processed by sagas; relay, orchestrator, consumer and the
    payment provider are processes of their own. At the end every order has either been completed
    or undone, and the checks below the table say so; the exit code is 1 if one does not hold.

    How the figures are measured, when every process has ended:

    \b
      completed,       the state of each order's saga in the saga table
      compensated,
      stuck
      refunds          rows of the provider's own ledger
      cancellations    orders of the shop that were created and then cancelled
      published        with NATS: the messages its stream holds, each id once;
                       with the local broker: messages handed over and handled
      handled          rows of the inbox: the first delivery of a message to a consumer
      duplicates       "duplicate dropped" in the logs of the processes: later deliveries
                       (one that was dropped by a process killed before it logged it is missing)
      kills            each process is frozen, its work counted, killed, its work counted again;
      in flight        the smaller number, if greater than 0: for an orchestrator unfinished
                       instances under its live lease, for a relay rows left in the outbox,
                       for a consumer messages the broker has handed to it without an answer
      seconds          of the whole run, servers started and stopped
    """
    for module in _NEEDED:
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigurationError(
                f"the demo needs {module}, which is not installed: pip install 'outbox-saga[demo]'"
            ) from error
    # not before it is known to be importable
    from outbox_saga_relay.demo.run import Wanted, run  # noqa: PLC0415

    wanted = Wanted(
        orders=orders,
        count=count,
        concurrency=concurrency,
        kills=kills,
        seed=faults,
        faults=not no_faults,
        postgres=postgres,
        nats=nats,
    )
    ctx.exit(0 if run(wanted, as_json=as_json) else 1)
