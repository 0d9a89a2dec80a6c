"""The programs: relay, orchestrate, consume and run, each until SIGTERM or SIGINT.

A second signal ends them at once.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from outbox_saga.calling import STUBBORN
from outbox_saga.database import DEADLINE, Database
from outbox_saga.errors import ConfigurationError
from outbox_saga.service import Service
from outbox_saga.worker_threads import any_left_alone, beyond_their_time
from outbox_saga_relay.cli import report
from outbox_saga_relay.database_options import schema_option
from outbox_saga_relay.logs import log_to_stderr
from outbox_saga_relay.times import STRETCH
from outbox_saga_relay.typed import is_typed, refuse_typed

logger = logging.getLogger("outbox_saga.programs")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def load_service(reference: str) -> Service:
    """The service that `module:attribute` names.

    Raises ConfigurationError saying what was not found.
    """
    if "://" in reference:  # and is not repeated: it may have a password
        raise ConfigurationError(
            "a URL stands where the service should; write module:attribute there, as in "
            "shop.orders:service, and give a broker by --broker, a database by --database-url"
        )
    module_name, _, attribute = reference.partition(":")
    if not attribute or not module_name:
        raise ConfigurationError(
            f"{reference!r} names no service; write module:attribute, as in shop.orders:service"
        )
    sys.path.insert(0, "")  # as `python -m` does: services are started from their own folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"no module {module_name!r}; start from its folder, or install it"
            ) from error
        raise
    if not hasattr(module, attribute):
        raise ConfigurationError(
            f"{module_name} has no {attribute!r}; name the attribute that holds the Service"
        )
    service = getattr(module, attribute)
    if not isinstance(service, Service):
        raise ConfigurationError(f"{reference} is {type(service).__name__}, not a Service")
    return service


def until_signalled(program: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs until the first SIGTERM or SIGINT, then lets it finish.

    The second one ends the process at once. Functions of users' that cannot be ended (plain ones
    that hang beyond their time, async ones that swallow their cancellation) do not keep it, nor
    does what they leave hide an error that ended the program.
    """

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def signalled() -> None:
            if stop.is_set():
                os._exit(1)  # leases end by themselves; everything unfinished is taken over
            logger.info("stopping: finishing what is in flight; signal again to stop at once")
            stop.set()

        for number in _SIGNALS:
            loop.add_signal_handler(number, signalled)
        await program(stop)

    gc.freeze()  # what was imported stays; to look through it costs a relay a quarter of its time
    failure: Exception | None = None
    runner = asyncio.Runner()
    try:
        try:
            runner.run(main())
        except Exception as error:  # noqa: BLE001  # raised or reported below
            failure = error
        going_on = runner.run(_end_all())
        if going_on is None:  # closing a loop waits for all its tasks, and the default threads
            runner.close()
    except KeyboardInterrupt:
        os._exit(1)  # it came as the loop let go of the signals
    if failure is not None and going_on is None and not any_left_alone():
        raise failure
    with _signals_end_it():
        # told before anybody is waited for
        code = 0 if failure is None else report(failure)
        late = beyond_their_time()
        if late:
            # the interpreter would wait for their threads, and they may hang for ever
            logger.warning(
                "%d plain functions outlived their time; the process ends in them", late
            )
        if going_on is not None:
            logger.warning("%s; the process ends in them", going_on)
        if late or going_on is not None:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if failure is not None:
        sys.exit(code)


async def _end_all() -> str | None:
    """What cannot be ended, in words; None: no task is left, and no thread of `to_thread`.

    As `asyncio.run` does it, which waits for them without a limit.
    """
    if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        _, going_on = await asyncio.wait(tasks, timeout=STUBBORN)
        if going_on:
            return f"{len(going_on)} async functions went on though they were cancelled"
    # a thread waits for the others, and would be waited for if this task were cancelled
    ending = asyncio.create_task(asyncio.get_running_loop().shutdown_default_executor())
    _, going_on = await asyncio.wait({ending}, timeout=STUBBORN)
    return "threads of async functions went on" if going_on else None


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Any signal ends the process at once: the event loop, which heeded them, is gone."""
    before = {number: signal.signal(number, lambda *_: os._exit(1)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_LOG = click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Of our logs, on standard error; never a payload in them. Others' from warning on.",
)
_ORCHESTRATING = _options(
    click.option(
        "--lease", type=click.FloatRange(min=0.5), help="Seconds until another process takes over."
    ),
    click.option(
        "--concurrency", type=click.IntRange(min=1), help="Saga instances at the same time."
    ),
    click.option(
        "--poll", type=click.FloatRange(min=0.001), help="Seconds between two looks when idle."
    ),
)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@click.command()
@click.argument("service", required=False)
@click.option(
    "--database-url", envvar="OUTBOX_SAGA_DATABASE_URL", help="Whose outbox, without a SERVICE."
)
@click.option("--broker", envvar="OUTBOX_SAGA_BROKER", help="Broker URL, without a SERVICE.")
@schema_option
@click.option(
    "--lease", type=click.FloatRange(min=0.5), help="Seconds until another relay takes over."
)
@click.option(
    "--poll", type=click.FloatRange(min=0.001), help="Seconds between two looks when idle."
)
@click.option("--page-rows", type=click.IntRange(1, 5000), help="Rows read at once.")
@click.option(
    "--max-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MESSAGES",
    help="Messages sent in a second at most. [default: as many as the broker takes]",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=DEADLINE,
    show_default=True,
    metavar="SECONDS",
    help="A database that has not answered by then is given up and asked anew; without a SERVICE.",
)
@click.option("--once", is_flag=True, help="Publish what can be published now, and end.")
@click.option(
    "--skip-poison",
    multiple=True,
    metavar="TOPIC",
    help="Keys of this topic go on when a message of theirs becomes a dead letter; others are "
    "parked. May be given several times.",
)
@click.option(
    "--archive-window",
    type=STRETCH,
    envvar="OUTBOX_SAGA_ARCHIVE_WINDOW",
    default=0.0,
    show_default="0: none",
    help="Keep what was published for so long (as in 3d), to send it again; see `archive`.",
)
@click.option(
    "--inbox-window",
    type=STRETCH,
    envvar="OUTBOX_SAGA_INBOX_WINDOW",
    help="Let the inbox of this database forget after so long (as in 30d). [default: never]",
)
@click.option(
    "--listen-url",
    envvar="OUTBOX_SAGA_LISTEN_URL",
    help="Where to LISTEN for commits: a direct URL, if --database-url leads through a pooler.",
)
@click.option("--no-listen", is_flag=True, help="Only look every --poll seconds.")
@_LOG
def relay(
    service: str | None,
    database_url: str | None,
    broker: str | None,
    schema: str | None,
    lease: float | None,
    poll: float | None,
    page_rows: int | None,
    max_rate: float | None,
    deadline: float,
    *,
    once: bool,
    skip_poison: tuple[str, ...],
    archive_window: float,
    inbox_window: float | None,
    listen_url: str | None,
    no_listen: bool,
    log_level: str,
) -> None:
    """Publish what transactions committed.

    Of SERVICE (module:attribute), or of --database-url to --broker.
    """
    from outbox_saga.brokers import open_publisher
    from outbox_saga_relay.relay import Relay

    if once and is_typed("inbox_window"):
        raise click.UsageError(
            "--once publishes and ends; what the inbox may forget removes `prune --once`"
        )
    if once:
        refuse_typed("poll", "listen_url", "no_listen", why="--once does not wait for commits")
    if no_listen:
        refuse_typed("listen_url", why="with --no-listen nobody listens")
    log_to_stderr(log_level)
    options = _given(
        lease=lease, poll=poll, page_rows=page_rows, max_rate=max_rate, listen=listen_url
    )
    options |= {"skip_poison": skip_poison} | ({"listen": False} if no_listen else {})
    options |= {"archive": archive_window > 0}
    if service is not None:
        typed = [n for n in ("database_url", "broker", "schema", "deadline") if is_typed(n)]
        if typed:
            raise click.UsageError(
                "give SERVICE, which knows its database (and deadline), broker and schema, or "
                "--database-url and --broker, not both"
            )
        loaded = load_service(service)
        _relay(
            loaded.relay_program(**options), loaded.database, archive_window, inbox_window, once
        )
        return
    if database_url is None or broker is None:
        raise click.UsageError(
            "give SERVICE (module:attribute), or both --database-url and --broker"
        )
    if broker == "local":
        raise click.UsageError(
            "the local broker hands messages to a service's handlers: give SERVICE"
        )
    publisher = open_publisher(broker)
    database = Database(database_url, schema=schema, deadline=deadline)
    program = Relay(database, publisher, **options)
    _relay(program, database, archive_window, inbox_window, once)


def _relay(
    program: Any,
    database: Database,
    archive_window: float,
    inbox_window: float | None,
    once: bool,  # noqa: FBT001 - as click gave it
) -> None:
    """The relay, and beside it who removes what may be forgotten."""
    from outbox_saga_relay.housekeeping import Housekeeping

    if once:
        until_signalled(lambda stop: _once(program, stop))
        return
    if not archive_window and inbox_window is None:
        until_signalled(program.run)
        return
    # one that archives nothing leaves alone what another relay of the same outbox archives
    housekeeping = Housekeeping(
        database, archive_window=archive_window or None, inbox_window=inbox_window
    )

    async def both(stop: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(housekeeping.run(stop))
                await program.run(stop)
                stop.set()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    until_signalled(both)


async def _once(program: Any, stop: asyncio.Event) -> None:
    published = await program.run_until_empty(stop)
    click.echo(f"{published} messages published")


@click.command()
@click.argument("service")
@_ORCHESTRATING
@_LOG
def orchestrate(
    service: str, lease: float | None, concurrency: int | None, poll: float | None, log_level: str
) -> None:
    """Carry the sagas of SERVICE (module:attribute) on; as many processes as you like."""
    log_to_stderr(log_level)
    loaded = load_service(service)
    options = _given(lease=lease, concurrency=concurrency, poll=poll)
    until_signalled(lambda stop: loaded.orchestrate(stop, **options))


@click.command()
@click.argument("service")
@_LOG
def consume(service: str, log_level: str) -> None:
    """Handle what the broker delivers to the consumers of SERVICE (module:attribute)."""
    log_to_stderr(log_level)
    until_signalled(load_service(service).consume)


@click.command()
@click.argument("service")
@_LOG
def run(service: str, log_level: str) -> None:
    """Relay, orchestrator and consumers of SERVICE (module:attribute) in one process."""
    log_to_stderr(log_level)
    until_signalled(load_service(service).run)
