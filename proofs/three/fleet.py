"""The processes of the three services, and their deaths.

A process dies **in flight** if one of its transactions had changed something and had not committed
when it was killed. That is looked up at the server while the process stands still (SIGSTOP), so it
is so at the moment of the SIGKILL: its session, known by `application_name`, has a transaction id.
A transaction that has only read does not count.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from proofs.peril.brood import born, ended
from proofs.three.programs import run

LEASE = "3"
HUNT = 10.0  # seconds to find one in flight, at most
PATIENCE = 120.0  # seconds within which one has begun to work, or has ended when it was asked to

KINDS: Mapping[str, tuple[int, tuple[str, ...]]] = {  # how many at once, and what each runs
    "relay of orders": (2, ("relay", "proofs.three.orders:service", "--lease", LEASE)),
    "relay of payments": (1, ("relay", "proofs.three.payments:service", "--lease", LEASE)),
    "relay of inventory": (1, ("relay", "proofs.three.inventory:service", "--lease", LEASE)),
    "consumer of orders": (1, ("consume", "proofs.three.orders:service")),
    "consumer of payments": (2, ("consume", "proofs.three.payments:service")),
    "consumer of inventory": (2, ("consume", "proofs.three.inventory:service")),
    "orchestrator": (2, ("orchestrate", "proofs.three.orders:service", "--lease", LEASE)),
    "placer": (2, ("place",)),
}
_AT_WORK = sa.text("SELECT application_name FROM pg_stat_activity")
_IN_FLIGHT = sa.text(
    "SELECT application_name FROM pg_stat_activity "
    "WHERE datname <> current_database() AND backend_xid IS NOT NULL"
)


class Member:
    """One process.

    Args:
        name: Of its sessions.
        words: What it runs.
    """

    def __init__(self, kind: str, name: str, words: list[str], env: Mapping[str, str]) -> None:
        self.kind, self.name = kind, name
        self._life = ExitStack()
        told = {**env, "PGAPPNAME": name}
        self._process = self._life.enter_context(born(run, words, told))

    def code(self, patience: float = 0.0) -> int | None:
        """Its exit code, once it has ended; None: it has not, in that time."""
        return ended(self._process, patience)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def stop(self) -> bool:
        """All of its threads stand still; False: it has ended."""
        self.send(signal.SIGSTOP)
        while self.code() is None:
            if self._threads() == {"T"}:
                return True
            time.sleep(0.0005)
        return False

    def _threads(self) -> set[str]:
        try:
            tasks = list(Path(f"/proc/{self._process.pid}/task").iterdir())
            return {(t / "stat").read_text().rpartition(")")[2].split()[0] for t in tasks}
        except OSError:  # one ended while we looked
            return set()

    def kill(self) -> None:
        """SIGKILL; it has ended."""
        self._life.close()


class Fleet:
    """As many of each kind as there shall be, for most of the time.

    Args:
        server: Its maintenance database, where all sessions are seen.
        env: What tells the programs where databases and broker are.
        placing: The arguments of the placers.
    """

    def __init__(
        self, server: sa.Engine, env: Mapping[str, str], placing: tuple[str, ...]
    ) -> None:
        self._server = server
        self._env = env
        self._placing = placing
        self._started = 0
        self._began = time.monotonic()
        self.members: list[Member] = []
        self.killed: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.log: list[str] = []
        for kind, (count, _) in KINDS.items():
            for _ in range(count):
                self._start(kind)

    def _start(self, kind: str) -> None:
        self._started += 1
        more = self._placing if kind == "placer" else ("--log-level", "error")
        words = [*KINDS[kind][1], *more]
        self.members.append(Member(kind, f"p35 {self._started}", words, self._env))

    def look_after(self) -> None:
        """Nobody has ended by itself, but for placers that had nothing left to place."""
        for member in list(self.members):
            code = member.code()
            if code is None:
                continue
            self.members.remove(member)
            if member.kind == "placer" and code == 0:
                continue
            self.wrong.append(f"{self.now()} s: a {member.kind} ended by itself: {code}")
            self._start(member.kind)

    def kill(self, kind: str, chance: random.Random, *, aims: bool) -> None:
        """One of these is killed, and another one started in its place.

        Args:
            aims: It is tried to do so in flight; else at any moment.
        """
        member = self._at_work(kind, chance)
        if member is None:
            return
        hunted = self._hunted(kind) if aims else None
        member = hunted or member
        flying = hunted is not None or (member.stop() and member.name in self._flying())
        member.kill()
        self.members.remove(member)
        self.killed[kind] += 1
        self.in_flight[kind] += flying
        self.note(f"{kind} killed{', in flight' if flying else ''}")
        self._start(kind)

    def _at_work(self, kind: str, chance: random.Random) -> Member | None:
        """One that has come so far as to have a session; None: there is none of this kind."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.look_after()
            mine = [m for m in self.members if m.kind == kind]
            if not mine:
                return None
            try:
                with self._server.connect() as connection:
                    names = set(connection.scalars(_AT_WORK))
            except DBAPIError:  # it was restarted just now
                names = set()
            working = [m for m in mine if m.name in names]
            if working:
                return chance.choice(working)
            time.sleep(0.05)
        self.wrong.append(f"{self.now()} s: no {kind} came to work within {PATIENCE} s")
        return None

    def _hunted(self, kind: str) -> Member | None:
        """One of this kind that stands still in flight; None: there was none to be had."""
        deadline = time.monotonic() + HUNT
        while time.monotonic() < deadline:
            flying = self._flying()
            for member in self.members:
                if member.kind == kind and member.name in flying:
                    if member.stop() and member.name in self._flying():
                        return member
                    member.send(signal.SIGCONT)
            time.sleep(0.003)
        return None

    def _flying(self) -> set[str]:
        """Names of sessions that have changed something and not committed it."""
        with self._server.connect() as connection:
            return set(connection.scalars(_IN_FLIGHT))

    def end(self) -> None:
        """All are asked to end, and do so in good order; placers have to do so by themselves."""
        self.look_after()
        for member in self.members:
            if member.kind != "placer":
                member.send(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for member in self.members:
            code = member.code(max(0.0, deadline - time.monotonic()))
            if code:
                self.wrong.append(f"a {member.kind}, asked to end, did so with {code}")
            elif code is None:
                self.wrong.append(f"a {member.kind} did not end when it should")

    def kill_all(self) -> None:
        """Whatever is left of them."""
        for member in self.members:
            member.kill()

    def note(self, what: str) -> None:
        """For the log."""
        self.log.append(f"{self.now()} s: {what}")

    def now(self) -> float:
        """Seconds since it began."""
        return round(time.monotonic() - self._began, 2)
