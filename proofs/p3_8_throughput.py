"""Proof 3.8: how many sagas a second, beside peers and beside what must be written anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks import databases, machine, report, sagas
from benchmarks.load import wait_for_quiet
from benchmarks.measuring import QUIET, THOROUGH, Group, Sample, Variant, compare
from benchmarks.peers.environments import PeerUnavailable, python_of
from benchmarks.peers.known import Settings
from benchmarks.peers.saga_engines import SAGA_ENGINES, SagaEngine
from benchmarks.saga_runs import Runs, transitions
from benchmarks.saga_steps import IN_FLIGHT, Ground, Kind
from proofs.registry import Outcome, parts, proof, say
from proofs.throughput.claims import claim_costs

SAGAS, SAGAS_OF_PEERS, TRIED = 600, 300, 100
EFFORT = replace(THOROUGH, rounds=5, patience=5.0)
OF_PEER, OF_FLOOR, OF_ONE, LOST = 2.0, 0.5, 1.0, 0.01
KINDS: tuple[Kind, ...] = ("async", "def")

Part = Callable[[Runs], tuple[bool, dict[str, Any], list[Group]]]


@proof("3.8")
def throughput() -> Outcome:
    """Each part in interleaved rounds, on one server."""
    parts_of_it: dict[str, Part] = {
        "floor": _floor,
        "forward": lambda runs: _peers(runs, failing=False),
        "compensating": lambda runs: _peers(runs, failing=True),
        "two processes": _two_processes,
        "claims": _claims,
    }
    wanted = parts(parts_of_it)
    good: list[bool] = []
    measured: dict[str, Any] = {"machine": machine.describe(), "in_flight": IN_FLIGHT}
    groups: list[Group] = []
    with databases.postgres() as place:
        Ground(place.url, 0).prepare()
        for name in wanted:
            ok, measured[name], more = parts_of_it[name](Runs(place))
            say(f"{name}: {'met' if ok else 'MISSED'} {measured[name]}")
            good.append(ok)
            groups += more
    measured["notes"] = report.notes(groups, EFFORT)
    return Outcome(ok=all(good) and len(wanted) == len(parts_of_it), measured=measured)


def _floor(runs: Runs) -> tuple[bool, dict[str, Any], list[Group]]:
    """Of sagas that are there already; both sides in one process."""
    measured: dict[str, Any] = {"bar": OF_FLOOR, "sagas": SAGAS}
    groups: list[Group] = []
    good = True
    for kind in KINDS:
        variants = sagas.against_the_floor(Ground(runs.place.url, SAGAS), kind)
        group = compare("sagas", f"{runs.place.name}, {kind} steps", sagas.UNIT, variants, EFFORT)
        ratio = group.figures[1].ratio or 0.0
        good &= ratio >= OF_FLOOR
        measured[kind] = {"ratio": round(ratio, 3), "rates": report.rates(group.figures)}
        groups.append(group)
    return good, measured, groups


def _peers(runs: Runs, *, failing: bool) -> tuple[bool, dict[str, Any], list[Group]]:
    """Of sagas that are started within the time, by one process each."""
    tried, missing = _tried(runs, failing=failing)
    ours = [_ours(runs, kind, failing=failing) for kind in KINDS]
    best = [max(trials, key=lambda trial: trial.rate) for trials in tried]
    peers = [
        Variant(
            each.name,
            partial(_measured, runs, each.engine, each.settings, SAGAS_OF_PEERS, failing=failing),
        )
        for each in best
    ]
    setting = "the last step fails, the others are undone" if failing else "all go forward"
    group = compare("sagas", f"{runs.place.name}, {setting}", sagas.UNIT, [*ours, *peers], EFFORT)
    better = max(figure.rate for figure in group.figures[len(ours) :])
    ratios = [round(figure.rate / better, 2) for figure in group.figures[: len(ours)]]
    least = transitions(failing=failing)
    commits = {each.name: round(runs.commits_of(each.name), 2) for each in (*ours, *peers)}
    good = not missing and min(ratios) >= OF_PEER and min(commits.values()) >= least
    return (
        good,
        {
            "sagas": SAGAS_OF_PEERS,
            "of_the_better_peer": {"bar": OF_PEER, **dict(zip(KINDS, ratios, strict=True))},
            "commits_a_saga": {"steps_done_or_undone": least, **commits},
            "rates": report.rates(group.figures),
            "tried": {each.name: round(each.rate, 1) for trials in tried for each in trials},
            "not_to_be_had": missing,
        },
        [group],
    )


def _ours(runs: Runs, kind: Kind, *, failing: bool) -> Variant:
    name = f"Orchestrator, {kind} steps"
    return Variant(
        name, lambda: runs.ours(name, SAGAS_OF_PEERS, kind, failing=failing, start=True)
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """A peer with some settings, measured once."""

    engine: SagaEngine
    settings: Settings
    rate: float

    @property
    def name(self) -> str:
        return _name(self.engine, self.settings)


def _name(engine: SagaEngine, settings: Settings) -> str:
    return f"{engine.name} ({', '.join(f'{name}={value}' for name, value in settings.items())})"


def _measured(
    runs: Runs, engine: SagaEngine, settings: Settings, count: int, *, failing: bool
) -> Sample:
    return runs.peer(_name(engine, settings), engine, settings, count, failing=failing)


def _tried(runs: Runs, *, failing: bool) -> tuple[list[list[_Trial]], dict[str, str]]:
    """Every peer with every setting that may be its best."""
    found: list[list[_Trial]] = []
    missing: dict[str, str] = {}
    for engine in SAGA_ENGINES:
        try:
            python_of(engine)
        except PeerUnavailable as reason:
            say(f"peers: {engine.name}: {reason}")
            missing[engine.name] = str(reason)
            continue
        trials = []
        for settings in engine.settings:
            wait_for_quiet(QUIET, 1.0)
            sample = _measured(runs, engine, settings, TRIED, failing=failing)
            trials.append(_Trial(engine, settings, sample.rate))
            say(f"  tried {trials[-1].name:<60}{sample.rate:>8,.1f} sagas/s")
        found.append(trials)
    if not found:
        raise PeerUnavailable(f"no peer can be had here: {missing}")
    return found, missing


def _two_processes(runs: Runs) -> tuple[bool, dict[str, Any], list[Group]]:
    """Of sagas that are there already: two real processes, each with as many in flight as one."""
    measured: dict[str, Any] = {"bar": OF_ONE, "lost_claims_bar": LOST, "sagas": SAGAS}
    groups: list[Group] = []
    good = True
    for kind in KINDS:
        one, two = (f"{n} process{'es' * (n > 1)}, {kind} steps" for n in (1, 2))
        variants = [
            Variant(one, partial(runs.ours, one, SAGAS, kind)),
            Variant(two, partial(runs.ours, two, SAGAS, kind, processes=2), one),
        ]
        group = compare("sagas", f"{runs.place.name}, {kind} steps", sagas.UNIT, variants, EFFORT)
        ratio, claims = group.figures[1].ratio or 0.0, runs.lost_claims(two)
        good &= ratio >= OF_ONE and claims["share_lost"] < LOST
        measured[kind] = {
            "two_of_one": round(ratio, 2),
            "claims": claims,
            "claims_of_one": runs.lost_claims(one),
            "rates": report.rates(group.figures),
        }
        groups.append(group)
    return good, measured, groups


def _claims(runs: Runs) -> tuple[bool, dict[str, Any], list[Group]]:
    """Of one claim, with few instances and with many."""
    good, measured = claim_costs(runs.place)
    return good, measured, []
