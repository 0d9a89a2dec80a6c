"""Relays as processes, and what is done to them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from proofs.chaos.flight import ACCEPTED, FLYING, Flight
from proofs.chaos.relay_program import LEASE

ROOT = Path(__file__).resolve().parents[2]
FEWEST, USUAL, MOST = 2, 3, 4
LEAVING = 60.0  # seconds within which one that was asked to end has ended


class Relays:
    """Three of them, for most of the time.

    Args:
        folder: For what they tell of themselves.
    """

    def __init__(self, url: str, broker_url: str, seed: str, folder: Path) -> None:
        self._command = [sys.executable, "-m", "proofs.chaos.relay_program", url, broker_url]
        self._seed = seed
        self._folder = folder
        self._started = 0
        self._stopped: dict[subprocess.Popen[bytes], float] = {}
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._flights: dict[subprocess.Popen[bytes], Flight] = {}
        self._began = time.monotonic()
        self.done: Counter[str] = Counter()
        self.log: list[str] = []
        self.wrong: list[str] = []
        self._running = [self._start() for _ in range(USUAL)]

    def _start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        path = self._folder / f"flight{self._started}"
        flight = Flight(path)
        seed = f"{self._seed} {self._started}"
        relay = subprocess.Popen([*self._command, seed, str(path)], cwd=ROOT)
        self._flights[relay] = flight
        return relay

    def disturb(self, chance: random.Random, at_work: set[int]) -> None:
        """One that works is killed, stopped for longer than its lease, or leaves; or one comes.

        Args:
            at_work: The pids of those that have come so far as to say that they are alive.
        """
        self._go_on(at_least=0.0)
        for relay in [relay for relay in self._running if relay.poll() is not None]:
            self.wrong.append(f"relay {relay.pid} ended by itself: {relay.returncode}")
            self._running.remove(relay)
        working = [relay for relay in self._running if relay.pid in at_work]
        what = chance.choice(["kill", "kill", "stop", "stop", "leave", "come", "nothing"])
        # else nobody would ever get to work on a busy machine
        if what in ("kill", "leave") and len(working) >= FEWEST:
            self._end(what, chance.choice(working))
        elif what == "stop" and len(working) - len(self._stopped) >= FEWEST:
            self._stop(chance.choice([r for r in working if r not in self._stopped]), chance)
        elif what == "come" and len(self._running) < MOST:
            self._note("come", None)
            self._running.append(self._start())
        while len(self._running) < USUAL:
            self._running.append(self._start())

    def _end(self, what: str, relay: subprocess.Popen[bytes]) -> None:
        self._running.remove(relay)
        if self._stopped.pop(relay, None) is not None:
            what = "kill"  # it would not hear anything else
        if what == "leave":
            relay.terminate()
            self._leaving.append(relay)
            self._note("leave", relay)
            return
        relay.kill()
        relay.wait()
        self._note("kill", relay)

    def _stop(self, relay: subprocess.Popen[bytes], chance: random.Random) -> None:
        relay.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, relay.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        seconds = chance.uniform(0.5, 3) * LEASE
        self._stopped[relay] = time.monotonic() + seconds
        self._note("stop for longer than its lease" if seconds > LEASE else "stop", relay)

    def _go_on(self, at_least: float) -> None:
        for relay, until in list(self._stopped.items()):
            if time.monotonic() >= until - at_least:
                del self._stopped[relay]
                relay.send_signal(signal.SIGCONT)

    def _note(self, what: str, relay: subprocess.Popen[bytes] | None) -> None:
        flying = 0 if relay is None else self._flights[relay].counts[FLYING]
        self.done[what] += 1
        if relay is not None:
            self.done[f"{what}, with messages on their way"] += flying > 0
        who = "" if relay is None else f" {relay.pid}, {flying} on their way"
        self.log.append(f"{time.monotonic() - self._began:.2f} s: {what}{who}")

    @property
    def refused_for_good(self) -> set[str]:
        """Ids of messages that got a definite no from the broker."""
        return {id_ for flight in self._flights.values() for id_ in flight.refused_for_good}

    def answers(self) -> Counter[str]:
        """What the broker said, to all of them; and how many of them it took something from."""
        total: Counter[str] = Counter()
        for flight in self._flights.values():
            counts = flight.counts
            del counts[FLYING]
            total.update(counts)
            total["relays that published"] += counts[ACCEPTED] > 0
        return total

    def end(self) -> None:
        """None is left; those that were asked to end have done so in good order."""
        self._go_on(at_least=float("inf"))
        for relay in self._running:
            relay.kill()
            relay.wait()
        self._running = []
        deadline = time.monotonic() + LEAVING
        for relay in self._leaving:
            try:
                code = relay.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                relay.kill()
                relay.wait()
                self.wrong.append(f"relay {relay.pid} did not end when it was asked to")
            else:
                if code:
                    self.wrong.append(f"relay {relay.pid}, asked to end, did so with {code}")
        self._leaving = []
