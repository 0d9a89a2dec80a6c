"""The root of `outbox-saga`. A command's module is imported when that command runs, not before.

SQLAlchemy, Alembic and a broker's client take a second to import; `--help` and shell completion
shall not. So this module imports click and nothing else, and knows each command's one line.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click


@dataclass(frozen=True)
class Lazy:
    """A command that is not imported yet.

    Args:
        target: `module:attribute` of the click command.
        help: The line `--help` shows for it.
    """

    target: str
    help: str

    def load(self) -> click.Command:
        """The command itself."""
        module, _, attribute = self.target.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} is not a click command")
        return command


COMMANDS = {
    "run": Lazy(
        "outbox_saga_relay.programs:run",
        "Run a service's relay, orchestrator and consumers in one process.",
    ),
    "relay": Lazy(
        "outbox_saga_relay.programs:relay", "Publish what stands in the outbox to a broker."
    ),
    "orchestrate": Lazy(
        "outbox_saga_relay.programs:orchestrate",
        "Bring a service's sagas to their end.",
    ),
    "consume": Lazy(
        "outbox_saga_relay.programs:consume", "Hand messages to a service's handlers, once."
    ),
    "dead-letter": Lazy(
        "outbox_saga_relay.dead_letter_command:dead_letter",
        "Decide about messages that no broker took.",
    ),
    "archive": Lazy("outbox_saga_relay.archive_command:archive", "Send again what was published."),
    "prune": Lazy(
        "outbox_saga_relay.prune_command:prune", "Remove what may be forgotten, and nothing else."
    ),
    "waiting": Lazy(
        "outbox_saga_relay.waiting_command:waiting",
        "Look at messages that handlers failed on, try them again, or discard them.",
    ),
    "saga": Lazy(
        "outbox_saga_relay.saga_command:saga",
        "Look at sagas, and decide about those that are stuck.",
    ),
    "breaker": Lazy(
        "outbox_saga_relay.breaker_command:breaker",
        "Look at circuit breakers, or close one.",
    ),
    "status": Lazy(
        "outbox_saga_relay.status_command:status",
        "Show what waits, for whom, and who is at work.",
    ),
    "audit": Lazy(
        "outbox_saga_relay.audit_command:audit", "List what operators did, when, and why."
    ),
    "db": Lazy("outbox_saga_relay.db_command:db", "Make, check or remove our tables."),
    "doctor": Lazy(
        "outbox_saga_relay.doctor_command:doctor",
        "Look for what would lose, double or hold up messages and sagas.",
    ),
    "demo": Lazy(
        "outbox_saga_relay.demo.command:demo", "Watch a shop whose processes are being killed."
    ),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they run.

    Args:
        lazy: The commands by name, in the order `--help` shows them.
    """

    def __init__(self, *args: Any, lazy: dict[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names; nothing is imported."""
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name in self.lazy:
            return self.lazy[cmd_name].load()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' lines, from here instead of from their modules."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.lazy.items()])


class Root(LazyGroup):
    """Our errors, and a database's, are one line and exit code 1; `--debug` shows their origin."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except _expected_errors() as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(_one_line(error)) from error


def report(error: Exception) -> int:
    """Tell now what else `Root` would tell, or the interpreter; returns the exit code.

    For a process that cannot end by raising it.
    """
    ctx = click.get_current_context(silent=True)
    if isinstance(error, _expected_errors()) and ctx and not ctx.find_root().params.get("debug"):
        error = click.ClickException(_one_line(error))
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _expected_errors() -> tuple[type[Exception], ...]:
    """Ours and the drivers', as far as anything has imported them: else nobody has raised them."""
    expected = []
    if errors := sys.modules.get("outbox_saga.errors"):
        expected.append(errors.OutboxSagaError)
    if errors := sys.modules.get("sqlalchemy.exc"):
        expected.append(errors.DBAPIError)
    return tuple(expected)


def _one_line(error: Exception) -> str:
    # SQLAlchemy's own text repeats the statement and its parameters, which may be a payload
    original = getattr(error, "orig", None)
    said = str(error) if original is None else f"the database says: {original}"
    return " ".join((said or type(error).__doc__ or type(error).__name__).split())


@click.group(
    cls=Root,
    lazy=COMMANDS,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 99,
    },
)
@click.version_option(package_name="outbox-saga", prog_name="outbox-saga")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(*, debug: bool) -> None:
    """Events that leave if, and only if, their transaction commits; sagas that end."""
    del debug  # read by Root
