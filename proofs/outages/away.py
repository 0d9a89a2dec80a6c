"""A broker that is killed under load, away for so long, and back with all that piled up.

The server, the relay and the writers are processes; between relay and server stands somebody who
notes every connection and every message (`wire`). What comes out is what was found, and what of it
is against the documentation (`violations`).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.testing.servers import Nats
from proofs.chaos import stream
from proofs.outages import coming_back
from proofs.outages.relaying import (
    NAME,
    ROOT,
    create_stream,
    memory,
    relay,
)
from proofs.outages.relaying import counts as rows_left
from proofs.outages.relaying import prepare as prepared
from proofs.outages.wire import Wire, watching
from proofs.outages.writer import prepare, said
from proofs.registry import say

WRITERS = 2
LEAD, LEAD_SECONDS = 3000, 6.0  # events that flow before, and while, the broker is killed
FLOWING = 500  # messages at the broker before it is killed
LOOK = 1.0  # seconds between two looks at what must hold all the time
PATIENCE = 300.0  # seconds: for what flows before, for late writers, and for the rest to drain


@dataclass(frozen=True)
class Plan:
    """How bad it gets.

    Args:
        seconds: The server is away.
        events: Added meanwhile, evenly.
        max_rate: Messages a second that the relay may send, always; None: no such bound.
        megabytes: The relay's memory may have at most; None: it is only told.
    """

    seconds: float = 300.0
    events: int = 100_000
    keys: int = 1000
    max_rate: float | None = None
    megabytes: float | None = None
    seed: str = "20261128"


def run(url: str, broker: Nats, plan: Plan) -> dict[str, Any]:
    """One outage, in an empty database."""
    database = prepared(url)
    prepare(database, plan.keys)
    asyncio.run(create_stream(broker.url, [f"{NAME}.>"]))
    options = () if plan.max_rate is None else ("--max-rate", str(plan.max_rate))
    with watching(broker.place.host, broker.place.port, f"{NAME}.") as wire:
        through = f"nats://127.0.0.1:{wire.port}?stream={NAME}&prefix={NAME}"
        with relay(database, through, *options) as process:
            course = _Course(database, broker, wire, process, url, plan)
            course.flows()
            course.outage()
            course.drains()
    if process.returncode:
        course.violations.append(f"the relay ended with {process.returncode}")
    found = course.found()
    asyncio.run(database.close())
    return found


class _Course:
    def __init__(
        self,
        database: Database,
        broker: Nats,
        wire: Wire,
        process: subprocess.Popen[bytes],
        url: str,
        plan: Plan,
    ) -> None:
        self.violations: list[str] = []
        self._database, self._broker, self._wire = database, broker, wire
        self._process, self._url, self._plan = process, url, plan
        self._wrong: Counter[str] = Counter()
        self._writers: list[subprocess.Popen[bytes]] = []
        self._owner = self._relays()[0]
        self._looks = 0
        self._left: dict[str, int] = {}
        self._down_at = self._up_at = self._drained_at = 0.0
        self._most = self._megabytes = 0.0

    def flows(self) -> None:
        """Messages go their way."""
        self._write(LEAD, LEAD_SECONDS, "before")
        deadline = time.monotonic() + PATIENCE
        while len(self._wire.acknowledged) < FLOWING:
            if time.monotonic() > deadline:
                raise AssertionError("nothing goes its way though the broker is there")
            time.sleep(0.01)

    def outage(self) -> None:
        """The server is killed, under load, and started again when all is written."""
        self._broker.kill()
        self._down_at = time.monotonic()
        for number in range(WRITERS):
            share = self._plan.events // WRITERS + (number < self._plan.events % WRITERS)
            self._write(share, self._plan.seconds, str(number))
        told = self._down_at
        while self._is_writing() or time.monotonic() < self._down_at + self._plan.seconds:
            self._look()
            if time.monotonic() > told + 30:
                told = time.monotonic()
                say(f"{told - self._down_at:.0f} s without the broker: {self._left}")
            if time.monotonic() > self._down_at + self._plan.seconds + PATIENCE:
                raise AssertionError("the writers do not come to their end")
            time.sleep(LOOK)
        self._most = self._left["outbox"]
        self._up_at = time.monotonic()  # from here on somebody may get through
        self._broker.start()

    def drains(self) -> None:
        """Until nothing is left, or patience has."""
        deadline = time.monotonic() + PATIENCE
        self._look()
        while self._left["outbox"] and time.monotonic() < deadline:
            time.sleep(LOOK / 4)
            self._look()
        self._drained_at = time.monotonic()
        self._megabytes = memory(self._process)

    def found(self) -> dict[str, Any]:
        """What there was, with what was wrong about it."""
        plan, wrong = self._plan, self.violations
        wrote = []
        for writer in self._writers:
            told, _ = writer.communicate()
            if writer.returncode:
                wrong.append(f"a writer failed: {writer.returncode}")
            else:
                wrote.append(json.loads(told))
        wrong += [f"{what}, at {n} of {self._looks} looks" for what, n in self._wrong.items()]
        wrong += [f"{n} rows of {name} were left" for name, n in self._left.items() if n]
        deliveries = asyncio.run(stream.everything(self._broker, NAME))
        committed = _what_was_said(self._database)
        wrong += against(deliveries, committed)
        if plan.megabytes is not None and self._megabytes > plan.megabytes:
            wrong.append(f"the relay had {self._megabytes:.0f} MB of memory")
        asked = coming_back.probes(self._wire, self._owner, self._down_at, self._up_at)
        back = coming_back.rates(self._wire, self._down_at, self._up_at, plan.max_rate)
        wrong += asked.violations + back.violations
        return {
            "plan": asdict(plan),
            "committed": len(committed),
            "rolled_back": sum(told["rolled_back"] for told in wrote),
            "writers_late_seconds_at_most": max((t["latest"] for t in wrote), default=None),
            "away_seconds": round(self._up_at - self._down_at, 1),
            "most_rows_that_waited": self._most,
            "delivered": len({id_ for id_, _ in deliveries}),
            "delivered_again": len(deliveries) - len({id_ for id_, _ in deliveries}),
            "dead_letters": self._left["dead_letter"],
            "drained_after_seconds": round(self._drained_at - self._up_at, 1),
            "relay_megabytes": round(self._megabytes),
            "while_it_was_away": asked.measured,
            "when_it_was_back": back.measured,
            "violations": wrong,
        }

    def _write(self, events: int, seconds: float, name: str) -> None:
        seed = f"{self._plan.seed} {name}"
        command = [sys.executable, "-m", "proofs.outages.writer", self._url]
        command += [str(events), str(seconds), seed]
        self._writers.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))

    def _is_writing(self) -> bool:
        return any(writer.poll() is None for writer in self._writers)

    def _look(self) -> None:
        """What holds at every moment."""
        self._looks += 1
        if self._process.poll() is not None:
            raise AssertionError(f"the relay has ended: {self._process.returncode}")
        self._left = rows_left(self._database)
        if self._left["dead_letter"]:
            self._wrong["dead letters"] += 1
        if self._left["blocked_key"]:
            self._wrong["an attempt was counted"] += 1
        if self._relays() != [self._owner]:
            self._wrong["the relay does not say that it is alive"] += 1

    def _relays(self) -> list[str]:
        table, now = self._database.tables.process, self._database.clock.now()
        alive = sa.select(table.c.id).where(table.c.kind == "relay", table.c.until > now)
        with self._database.engine.connect() as connection:
            return [str(id_) for id_ in connection.scalars(alive)]


def _what_was_said(database: Database) -> set[tuple[str, str, int]]:
    with database.engine.connect() as connection:
        return {(row.id, row.key, row.number) for row in connection.execute(sa.select(said))}


def against(
    deliveries: list[tuple[str, bytes]], committed: set[tuple[str, str, int]]
) -> list[str]:
    """What is wrong with what the stream holds, compared with what was committed."""
    wrong = []
    firsts: dict[str, list[int]] = defaultdict(list)
    seen: dict[str, bytes] = {}
    published = set()
    for id_, body in deliveries:
        if id_ in seen:
            if seen[id_] != body:
                wrong.append(f"{id_} came with two bodies")
            continue
        seen[id_] = body
        told = json.loads(body)
        if told["doomed"]:
            wrong.append(f"{told}: its transaction was rolled back")
        firsts[told["key"]].append(told["number"])
        published.add((id_, told["key"], told["number"]))
    if published != committed:
        lost, invented = len(committed - published), len(published - committed)
        wrong.append(f"{lost} of what was committed lost, {invented} invented")
    for key, order in firsts.items():
        if order != list(range(1, len(order) + 1)):
            at = next(i for i, n in enumerate(order) if n != i + 1)
            wrong.append(f"{key}: {order[max(0, at - 2) : at + 4]} at {at} of {len(order)}")
    return wrong
