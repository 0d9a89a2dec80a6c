"""The processes of the three services, and their deaths.

A process dies **in flight** if one of its transactions had changed something and had not committed
when it was killed. That is looked up at the server while the process stands still (SIGSTOP), so it
is so at the moment of the SIGKILL: its session, known by `application_name`, has a transaction id.
A transaction that has only read does not count.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

ROOT = Path(__file__).resolve().parents[2]
LEASE, POLL = "3", "0.1"
TRIES = 400  # to find one in flight
PATIENCE = 60.0  # seconds within which one has begun to work, or has ended when it was asked to

_TOOL = (sys.executable, "-m", "outbox_saga_relay")
_RELAY = ("--lease", LEASE, "--poll", POLL)
KINDS: Mapping[str, tuple[int, tuple[str, ...]]] = {  # how many at once, and the program
    "relay of orders": (2, (*_TOOL, "relay", "proofs.three.orders:service", *_RELAY)),
    "relay of payments": (1, (*_TOOL, "relay", "proofs.three.payments:service", *_RELAY)),
    "relay of inventory": (1, (*_TOOL, "relay", "proofs.three.inventory:service", *_RELAY)),
    "consumer of orders": (1, (*_TOOL, "consume", "proofs.three.orders:service")),
    "consumer of payments": (2, (*_TOOL, "consume", "proofs.three.payments:service")),
    "consumer of inventory": (2, (*_TOOL, "consume", "proofs.three.inventory:service")),
    "orchestrator": (
        2,
        (*_TOOL, "orchestrate", "proofs.three.orders:service", "--lease", LEASE, "--poll", POLL),
    ),
    "placer": (2, (sys.executable, "-m", "proofs.three.placer")),
}
_AT_WORK = sa.text("SELECT application_name FROM pg_stat_activity")
_IN_FLIGHT = sa.text(
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE application_name = :name AND backend_xid IS NOT NULL"
)


class Member:
    """One process.

    Args:
        name: Of its sessions.
    """

    def __init__(self, kind: str, name: str, command: list[str], env: dict[str, str]) -> None:
        self.kind, self.name = kind, name
        env = {**env, "PGAPPNAME": name}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env)

    def stop(self) -> bool:
        """It stands still; False: it has ended."""
        self.process.send_signal(signal.SIGSTOP)
        found = os.waitid(
            os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT
        )
        return found is not None and found.si_code == os.CLD_STOPPED


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
        self._env = {**os.environ, **env}
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
        command = [*KINDS[kind][1], *(self._placing if kind == "placer" else ())]
        if kind != "placer":
            command += ["--log-level", "error"]
        self.members.append(Member(kind, f"p35 {self._started}", command, self._env))

    def look_after(self) -> None:
        """Nobody has ended by itself, but for placers that had nothing left to place."""
        for member in [m for m in self.members if m.process.poll() is not None]:
            self.members.remove(member)
            code = member.process.returncode
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
        flying = self._caught(member, chance, TRIES if aims else 1)
        member.process.kill()
        member.process.wait()
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

    def _caught(self, member: Member, chance: random.Random, tries: int) -> bool:
        """Stopped, if possible in flight; whether it is."""
        with self._server.connect() as connection:
            for left in reversed(range(tries)):
                if not member.stop():
                    return False
                if connection.execute(_IN_FLIGHT, {"name": member.name}).scalar_one():
                    return True
                if left:
                    member.process.send_signal(signal.SIGCONT)
                    time.sleep(chance.uniform(0.001, 0.02))
        return False

    def end(self) -> None:
        """All are asked to end, and do so in good order."""
        self.look_after()
        for member in self.members:
            member.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for member in self.members:
            try:
                code = member.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.wrong.append(f"a {member.kind} did not end when it was asked to")
            else:
                if code:
                    self.wrong.append(f"a {member.kind}, asked to end, did so with {code}")

    def kill_all(self) -> None:
        """Whatever is left of them."""
        for member in self.members:
            member.process.kill()
            member.process.wait()

    def note(self, what: str) -> None:
        """For the log."""
        self.log.append(f"{self.now()} s: {what}")

    def now(self) -> float:
        """Seconds since it began."""
        return round(time.monotonic() - self._began, 2)
