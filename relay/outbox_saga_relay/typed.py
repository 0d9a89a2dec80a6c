"""Whether somebody has typed an option, or it is there by default or by the environment."""

from __future__ import annotations

import click
from click.core import ParameterSource


def is_typed(name: str) -> bool:
    """True for an option on the command line: the environment may serve several commands."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE
