"""Proof 1.7: the first figures, measured anew, each beside its floor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.measuring import QUICK, Group
from benchmarks.running import BENCHES, run
from proofs.registry import Outcome, proof

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


@proof("1.7")
def first_figures() -> Outcome:
    """Run every bench in its quick sizes; look whether the page shows figures of each."""
    groups = list(run(BENCHES, QUICK))
    measured = [group for group in groups if _complete(group)]
    benches = {group.bench for group in measured}
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    on_the_page = {bench: f"## {bench}" in page.lower() for bench in sorted(benches)}
    return Outcome(
        ok=len(measured) == len(groups)
        and benches == {"write path", "relay", "sagas"}
        and all(on_the_page.values()),
        measured={
            "machine": machine.describe(),
            "notes": report.notes(groups, QUICK),
            "on_the_page": on_the_page,
            "figures": [_shown(group) for group in groups],
        },
    )


def _complete(group: Group) -> bool:
    """Whether something was counted for every variant, and every candidate has its floor here."""
    names = {figure.variant for figure in group.figures}
    return (
        any(figure.against is None for figure in group.figures)
        and any(figure.against is not None for figure in group.figures)
        and all(figure.counted > 0 and figure.rounds > 0 for figure in group.figures)
        and all(figure.against in names for figure in group.figures if figure.against)
    )


def _shown(group: Group) -> dict[str, Any]:
    figures = [
        {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in dataclasses.asdict(figure).items()
        }
        for figure in group.figures
    ]
    return {
        "bench": group.bench,
        "setting": group.setting,
        "unit": group.unit,
        "figures": figures,
    }
