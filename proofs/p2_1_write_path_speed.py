"""Proof 2.1: what publishing leaves of a transaction's own speed, on PostgreSQL 18."""

from __future__ import annotations

from typing import Any

from benchmarks import machine, report, write_path
from benchmarks.measuring import THOROUGH, Group
from proofs.registry import Outcome, proof

#: (kind, variant) -> the least ratio to the same transaction without messages
BARS = {
    ("sync", "one keyed event"): 0.90,
    ("async", "one keyed event"): 0.85,
    ("sync", "three keyed events"): 0.80,
    ("async", "three keyed events"): 0.80,
}


@proof("2.1")
def write_path_speed() -> Outcome:
    """Every setting in interleaved rounds; each ratio beside its bar."""
    groups = list(write_path.on_postgresql(THOROUGH))
    ratios = [row for group in groups for row in _ratios(group)]
    return Outcome(
        ok=bool(ratios) and all(row["ratio"] >= row["bar"] for row in ratios),
        measured={
            "machine": machine.describe(),
            "notes": report.notes(groups, THOROUGH),
            "ratios": ratios,
        },
    )


def _ratios(group: Group) -> list[dict[str, Any]]:
    kind = group.setting.split(", ")[1]
    return [
        {
            "setting": group.setting,
            "variant": figure.variant,
            "bar": BARS[kind, figure.variant],
            "ratio": round(figure.ratio, 3),
            "range": [round(figure.ratio_low or 0.0, 3), round(figure.ratio_high or 0.0, 3)],
            "rate": round(figure.rate),
            "disturbed": figure.disturbed,
        }
        for figure in group.figures
        if figure.ratio is not None and (kind, figure.variant) in BARS
    ]
