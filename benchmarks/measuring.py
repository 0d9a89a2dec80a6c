"""Floor and candidate, interleaved in one run.

Every round measures every variant once, in turn forwards and backwards, so that what drifts (the
machine, the server's caches) drifts for all of them. Figures are medians with their range; a ratio
is the median of the rounds' own ratios. A measurement during which others kept more than 15 % of a
core busy is repeated, and if none was quieter it is kept and counted as disturbed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.load import wait_for_quiet

FOREIGN_LIMIT = 0.15  # of one core
QUIET = 0.08  # of one core: when a measurement may begin


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Args:
        count: What was done so often: transactions, rows, steps.
        seconds: How long it took.
        client_cpu: Seconds of CPU of the processes that are compared, without the server's.
        all_cpu: The same with the server's; None where that is not known.
        foreign: Cores that others kept busy meanwhile; None where that is not known.
    """

    count: int
    seconds: float
    client_cpu: float
    all_cpu: float | None
    foreign: float | None

    @property
    def rate(self) -> float:
        """A second."""
        return self.count / self.seconds

    @property
    def disturbed(self) -> bool:
        """Whether others used too much of the machine."""
        return self.foreign is not None and self.foreign > FOREIGN_LIMIT


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do the work.

    Args:
        name: In tables.
        measure: Does it and says how long it took; prepares what it needs outside the timed part.
        against: The variant it is compared with; None: it is a floor.
    """

    name: str
    measure: Callable[[], Sample]
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """What the rounds of one variant came to; a rate is a count a second."""

    variant: str
    against: str | None
    rate: float
    low: float
    high: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    client_cpu_us: float
    server_cpu_us: float | None
    foreign: float | None
    disturbed: int
    rounds: int
    counted: int


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that may be compared with each other.

    Args:
        bench: Which bench.
        setting: Database, clients, sync or async.
        unit: What is counted.
        figures: Floors and candidates of one interleaved run.
    """

    bench: str
    setting: str
    unit: str
    figures: list[Figure]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Args:
        rounds: Measurements of each variant.
        seconds: Of one measurement, where the bench chooses its length.
        patience: Seconds to wait for a quiet machine before one measurement.
        repeats: How often a disturbed measurement is made again.
        quick: Smaller backlogs and fewer settings, which still mean something.
    """

    rounds: int
    seconds: float
    patience: float
    repeats: int
    quick: bool


THOROUGH = Effort(rounds=5, seconds=2.0, patience=20.0, repeats=1, quick=False)
QUICK = Effort(rounds=3, seconds=0.6, patience=1.0, repeats=0, quick=True)


def say(text: str) -> None:
    """Tell how far the bench is, on standard error."""
    print(text, file=sys.stderr, flush=True)


def compare(
    bench: str, setting: str, unit: str, variants: Sequence[Variant], effort: Effort
) -> Group:
    """All variants in interleaved rounds."""
    say(f"{bench}: {setting}")
    samples: dict[str, list[Sample]] = {variant.name: [] for variant in variants}
    for number in range(effort.rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            sample = _least_disturbed(variant, effort)
            samples[variant.name].append(sample)
            others = "" if sample.foreign is None else f", others {sample.foreign:.0%} of a core"
            warning = "  DISTURBED" if sample.disturbed else ""
            say(
                f"  round {number + 1}  {variant.name:<34}"
                f"{sample.rate:>10,.0f} {unit}{others}{warning}"
            )
    figures = [_figure(variant, samples) for variant in variants]
    return Group(bench, setting, unit, figures)


def _least_disturbed(variant: Variant, effort: Effort) -> Sample:
    found: list[Sample] = []
    for _ in range(1 + effort.repeats):
        wait_for_quiet(QUIET, effort.patience)
        found.append(variant.measure())
        if not found[-1].disturbed:
            return found[-1]
    return min(found, key=lambda sample: sample.foreign or 0.0)


def _figure(variant: Variant, samples: dict[str, list[Sample]]) -> Figure:
    own = samples[variant.name]
    rates = [sample.rate for sample in own]
    ratios = None
    if variant.against is not None:
        floor = samples[variant.against]
        ratios = [mine.rate / its.rate for mine, its in zip(own, floor, strict=True)]
    servers = [
        (sample.all_cpu - sample.client_cpu) / sample.count * 1e6
        for sample in own
        if sample.all_cpu is not None
    ]
    foreign = [sample.foreign for sample in own if sample.foreign is not None]
    return Figure(
        variant=variant.name,
        against=variant.against,
        rate=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        ratio=statistics.median(ratios) if ratios else None,
        ratio_low=min(ratios) if ratios else None,
        ratio_high=max(ratios) if ratios else None,
        client_cpu_us=statistics.median(s.client_cpu / s.count * 1e6 for s in own),
        server_cpu_us=max(0.0, statistics.median(servers)) if servers else None,
        foreign=max(foreign) if foreign else None,
        disturbed=sum(sample.disturbed for sample in own),
        rounds=len(own),
        counted=sum(sample.count for sample in own),
    )
