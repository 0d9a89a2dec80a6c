"""Rows for people on a terminal, for programs in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def print_json(found: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    click.echo(json.dumps(found))


def print_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns under their names on a terminal; in a pipe tabs, and no names."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names))]
    click.secho(_aligned(names, widths), bold=True)
    for row in rows:
        click.echo(_aligned(row, widths))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
