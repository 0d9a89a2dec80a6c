"""Whether somebody has typed an option, or it is there by default or by the environment."""

from __future__ import annotations

import click
from click.core import ParameterSource


def is_typed(name: str) -> bool:
    """True for an option on the command line: the environment may serve several commands."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def refuse_typed(*names: str, why: str) -> None:
    """Refuses what has been typed and could not be heeded.

    Raises:
        click.UsageError: It says which to leave out, and why.
    """
    typed = [f"--{name.replace('_', '-')}" for name in names if is_typed(name)]
    if typed:
        raise click.UsageError(f"leave out {', '.join(typed)}: {why}")
