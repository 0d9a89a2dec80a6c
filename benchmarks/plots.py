"""One picture of all ratios: how much of its floor's rate each candidate reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Group

_FLOOR_COLOUR, _COLOURS = (
    "#888888",
    {
        "write path": "#2a6f97",
        "relay": "#c8553d",
        "sagas": "#588157",
    },
)


def draw(groups: Sequence[Group], folder: Path) -> Path:
    """Writes `performance.svg` and gives its path; needs matplotlib (dependency group `bench`)."""
    import matplotlib as mpl

    mpl.use("svg")
    # the same figures make the same file
    mpl.rcParams.update({"svg.hashsalt": "outbox-saga", "font.size": 9})
    from matplotlib import pyplot as plt

    found = [(g, f) for g in groups for f in g.figures if f.ratio is not None]
    labels = [f"{figure.variant}\n{group.setting}" for group, figure in found]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(found) + 1.2), layout="constrained")
    for place, (group, one) in enumerate(found):
        ratio, low, high = one.ratio or 0.0, one.ratio_low or 0.0, one.ratio_high or 0.0
        axes.barh(place, ratio, color=_COLOURS[group.bench], height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.text(0.01, place, f" {ratio:.2f}", va="center", color="white", fontweight="bold")
    axes.axvline(1.0, color=_FLOOR_COLOUR, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(found)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("rate as a part of the floor's (1.0 = no cost); line: range of the rounds")
    axes.spines[["top", "right"]].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "performance.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
