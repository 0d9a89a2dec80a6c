"""Rows for people on a terminal, for programs in a pipe."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def print_json(found: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    click.echo(json.dumps(found))


def shown(text: str, *, lines: bool = False) -> str:
    """The text without what a terminal would obey or hide: control characters are spelled out.

    Escape sequences move the cursor and change what was printed; marks of direction show a text
    as another one.

    Args:
        lines: Line ends and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        c if c in kept or unicodedata.category(c) not in _OBEYED else ascii(c)[1:-1] for c in text
    )


# Control, format (direction marks, zero width), surrogates, line and paragraph separators
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """One thing, a line for each of its fields; in a pipe a tab between name and value."""
    wide = max(len(name) for name, _ in fields) if sys.stdout.isatty() else 0
    for name, value in fields:
        label = click.style(name.ljust(wide), bold=True) + "  " if wide else f"{name}\t"
        click.echo(label + shown(value))


def print_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns under their names on a terminal; in a pipe tabs, and no names."""
    rows = [[shown(cell) for cell in row] for row in rows]
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
