"""What was found, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.load import foreign_load
from benchmarks.measuring import FOREIGN_LIMIT, Effort, Figure, Group

_COLUMNS = (
    "variant",
    "median (min–max)",
    "ratio (min–max)",
    "client CPU µs",
    "server CPU µs",
    "foreign load",
)


def table(group: Group) -> str:
    """The group as a Markdown table, aligned for a terminal too."""
    rows: list[tuple[str, ...]] = [(_COLUMNS[0], f"{group.unit}, {_COLUMNS[1]}", *_COLUMNS[2:])]
    rows += [_row(figure) for figure in group.figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join((f"{group.bench}: {group.setting}", "", *lines))


def _row(figure: Figure) -> tuple[str, ...]:
    ratio = "floor"
    if figure.ratio is not None and figure.ratio_low is not None and figure.ratio_high is not None:
        ratio = f"{figure.ratio:.2f} ({figure.ratio_low:.2f}–{figure.ratio_high:.2f})"
    return (
        figure.variant,
        f"{figure.rate:,.0f} ({figure.low:,.0f}–{figure.high:,.0f})",
        ratio,
        _microseconds(figure.client_cpu_us),
        _microseconds(figure.server_cpu_us),
        _foreign(figure),
    )


def rates(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures as plain JSON values, rounded to what they are worth."""
    return [
        {
            "variant": figure.variant,
            "per_second": round(figure.rate),
            "range": [round(figure.low), round(figure.high)],
            "client_cpu_us": round(figure.client_cpu_us, 1),
            "server_cpu_us": figure.server_cpu_us and round(figure.server_cpu_us, 1),
            "disturbed": f"{figure.disturbed} of {figure.rounds}",
        }
        for figure in figures
    ]


def _microseconds(number: float | None) -> str:
    if number is None:
        return "not known"
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def _foreign(figure: Figure) -> str:
    if figure.foreign is None:
        return "not known"
    disturbed = f", {figure.disturbed} of {figure.rounds} disturbed" if figure.disturbed else ""
    return f"≤ {figure.foreign:.0%}{disturbed}"


def notes(groups: Sequence[Group], effort: Effort) -> list[str]:
    """What a reader must know before believing the figures."""
    figures = [figure for group in groups for figure in group.figures]
    limit = f"{FOREIGN_LIMIT:.0%}"
    said = [
        f"{effort.rounds} interleaved rounds: medians and range",
        "a ratio is the median of the rounds' own ratios to the floor",
        "CPU is per transaction, row or saga; the server's is what else this run's processes used",
        "foreign load is what others used of one core during a measurement, at worst",
        f"a measurement with more than {limit} was repeated, up to {effort.repeats} times",
    ]
    if effort.quick:
        said.append("quick sizes: short measurements and small backlogs, not for quoting")
    disturbed = sum(figure.disturbed for figure in figures)
    if disturbed:
        total = sum(figure.rounds for figure in figures)
        said.append(
            f"WARNING: {disturbed} of {total} measurements were disturbed: their rates are those "
            "of a shared machine; ratios and CPU times suffer less, but suffer"
        )
    if any(figure.foreign is None for figure in figures):
        said.append("WARNING: the foreign load is not known on this system")
    return said


def document(
    groups: Sequence[Group], effort: Effort, machine: dict[str, str], seconds: float
) -> dict[str, Any]:
    """Everything, as plain JSON values."""
    return {
        "machine": machine,
        "effort": dataclasses.asdict(effort),
        "seconds": round(seconds, 1),
        "foreign_load_at_the_end": foreign_load(),
        "notes": notes(groups, effort),
        "groups": [dataclasses.asdict(group) for group in groups],
    }
