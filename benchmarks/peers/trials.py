"""Which settings of which peer are fastest: each is tried once, in the run it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.backlog import Backlog
from benchmarks.load import wait_for_quiet
from benchmarks.measuring import QUIET, say
from benchmarks.peers.environments import PeerUnavailable, python_of
from benchmarks.peers.known import PEERS, Peer, Settings
from benchmarks.peers.measure import drained


@dataclass(frozen=True, slots=True)
class Trial:
    """One peer with some settings, measured once."""

    peer: Peer
    settings: Settings
    rows: int
    rate: float

    @property
    def name(self) -> str:
        """For tables."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.peer.name} ({settings})"

    def told(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "peer": self.peer.name,
            "packages": list(self.peer.packages),
            "order_it_promises": self.peer.promises,
            "settings": dict(self.settings),
            "rows": self.rows,
            "rows_per_second": round(self.rate),
        }


@dataclass(frozen=True, slots=True)
class Trials:
    """All of them, best first, and the peers that cannot be had here, with the reason."""

    found: Sequence[Trial]
    missing: dict[str, str]

    @property
    def best(self) -> Trial:
        """The fastest of all peers at its best settings."""
        return self.found[0]

    def told(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "tried": [trial.told() for trial in self.found],
            "not_to_be_had": self.missing,
        }


def try_all(backlog: Backlog, sleep: float) -> Trials:
    """Every peer with every setting that may be its best, on the first rows of the backlog."""
    found: list[Trial] = []
    missing: dict[str, str] = {}
    for peer in PEERS:
        try:
            python_of(peer)
            found += [
                _tried(peer, settings, backlog, sleep) for settings in _settings(peer, sleep)
            ]
        except PeerUnavailable as reason:
            say(f"peers: {peer.name}: {reason}")
            missing[peer.name] = str(reason)
    if not found:
        raise PeerUnavailable(f"no peer can be had here: {missing}")
    return Trials(sorted(found, key=lambda trial: -trial.rate), missing)


def _settings(peer: Peer, sleep: float) -> Sequence[Settings]:
    return peer.sleeping if sleep else peer.at_once


def _tried(peer: Peer, settings: Settings, backlog: Backlog, sleep: float) -> Trial:
    rows = min(backlog.rows, peer.tried[1] if sleep else peer.tried[0])
    wait_for_quiet(QUIET, 1.0)
    trial = Trial(peer, settings, rows, drained(peer, settings, backlog.dsn, rows, sleep).rate)
    say(f"  tried {trial.name:<90}{trial.rate:>10,.0f} rows/s")
    return trial
