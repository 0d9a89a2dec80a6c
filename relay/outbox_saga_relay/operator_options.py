"""What every action of a person is told on the command line: who, why, how fast; and it asks."""

from __future__ import annotations

import getpass
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from outbox_saga.decisions import Decision

LINES = 20  # of a plan that are shown, at most


def _os_user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return None


operator_option = click.option(
    "--operator",
    envvar="OUTBOX_SAGA_OPERATOR",
    default=_os_user,
    show_default="the user of the operating system",
    show_envvar=True,
    metavar="NAME",
    help="Who decides; kept for good.",
)
reason_option = click.option("--reason", metavar="TEXT", help="Why; kept for good. Required.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
plan_option = click.option(
    "--plan", "only_plan", is_flag=True, help="Show what would happen; change nothing."
)
rate_option = click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True, max=1e9),
    metavar="N",
    help="Messages a second, at most. [default: as fast as it goes]",
)


def decided(operator: str | None, reason: str | None) -> Decision:
    """Who and why; asked for on a terminal, where it was not said."""
    if operator is None:
        raise click.UsageError(
            "say who decides, by --operator or OUTBOX_SAGA_OPERATOR: this user has no name here"
        )
    if reason is None:
        if not sys.stdin.isatty():
            raise click.UsageError("say why, by --reason: it is kept with the action")
        reason = click.prompt("Why", err=True)
    return Decision(operator, reason)


def confirm(count: int, question: str, *, yes: bool) -> None:
    """Goes on only when somebody has typed how many it is about, or `--yes` said so before."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this is about more than one: look with --plan, then pass --yes")
    typed = click.prompt(
        f"{question} Type {count} to go on", default="", show_default=False, err=True
    )
    if typed.strip() != str(count):
        raise click.Abort


def warn(text: str) -> None:
    """A sentence to whoever decides, on standard error."""
    click.secho(text, fg="yellow", err=True)


@contextmanager
def stoppable(told: Callable[[], object] = lambda: None) -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, so that what is under way ends well.

    The second one ends the process; what was done stays done.

    Args:
        told: Called when the event is set; in the main thread, between any two of its steps.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python hands signals to the main thread only; whoever has that one decides
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def asked(number: int, _: FrameType | None) -> None:
        stop.set()
        told()
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, asked)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """How far it is, on standard error: a bar on a terminal, nothing elsewhere.

    The bar is that of the extra `cli`, or click's where it is not installed.
    """
    if not sys.stderr.isatty() or total < 2:
        yield lambda _: None
        return
    try:
        import rich.progress as bars
        from rich.console import Console
    except ImportError:
        with click.progressbar(length=total, label=what, file=sys.stderr) as plain:
            yield lambda done: plain.update(done - plain.pos)
        return
    columns: tuple[Any, ...] = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
