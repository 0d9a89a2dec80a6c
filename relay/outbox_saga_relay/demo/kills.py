"""SIGKILL at moments that a seed chooses, and what was in flight then, counted and not guessed.

To know what a process had in hand when it died, it is frozen first (SIGSTOP), then its work is
counted, then it is killed, and what it has left is counted again. The smaller number is the one
that is recorded: work that the frozen process had in hand and the dead one has left behind.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outbox_saga_relay.demo.processes import ChildProcess

_WAIT_AT_MOST = 10.0  # seconds for a moment with work in flight


@dataclass(frozen=True, slots=True)
class Kill:
    """One SIGKILL.

    Args:
        process: Which.
        in_flight: How many pieces of work it left.
        what: Of which kind they are.
        after: How many sagas had ended.
        at: Seconds since the start.
    """

    process: str
    in_flight: int
    what: str
    after: int
    at: float

    def as_json(self) -> dict[str, Any]:
        """For people who want to look at each."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that may be killed.

    Args:
        process: It.
        what: What it can have in hand, for people.
        in_hand: Counts that, in the database or at the broker.
        bury: Called when it is dead, so that what it left is not counted for its successor.
    """

    process: ChildProcess
    what: str
    in_hand: Callable[[], int]
    bury: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class _Plan:
    after: int
    victim: Victim
    patient: bool


class Killer:
    """Kills processes as the run goes on; call `tick` often.

    Args:
        victims: Which processes, each in its turn.
        kills: How many times in all.
        sagas: How many sagas the run will end; the moments are spread over nine tenths of them.
        seed: Of moments and turns.
    """

    def __init__(self, victims: Sequence[Victim], *, kills: int, sagas: int, seed: int) -> None:
        drawn = random.Random(f"kills:{seed}")  # noqa: S311 - the same moments every time
        moments = sorted(drawn.randrange(max(1, sagas * 9 // 10)) for _ in range(kills))
        self._plans = [
            # three of four wait for work in flight, the fourth strikes whatever is going on
            _Plan(moment, victim, patient=number % 4 != 3)
            for number, (moment, victim) in enumerate(
                zip(moments, _turns(victims, kills, drawn), strict=True)
            )
        ]
        self._started = time.monotonic()
        self._waiting_since: float | None = None
        self.kills: list[Kill] = []

    @property
    def planned(self) -> int:
        """How many kills are still to come."""
        return len(self._plans)

    def tick(self, ended: int, *, last: bool = False) -> Kill | None:
        """The kill, if it was time for one; its process runs again.

        Args:
            ended: How many sagas have ended.
            last: Nothing is going to be in flight any more: strike.
        """
        if not self._plans or (ended < self._plans[0].after and not last):
            return None
        plan = self._plans[0]
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        patient = plan.patient and not last and now - self._waiting_since < _WAIT_AT_MOST
        if patient and not plan.victim.in_hand():
            return None
        process = plan.victim.process
        process.freeze()
        in_flight = plan.victim.in_hand()
        if patient and not in_flight:
            process.thaw()  # it was quicker than we are
            return None
        process.kill()
        in_flight = min(in_flight, plan.victim.in_hand())
        plan.victim.bury()
        process.start()
        self._plans.pop(0)
        self._waiting_since = None
        kill = Kill(
            process.name, in_flight, plan.victim.what, ended, round(now - self._started, 2)
        )
        self.kills.append(kill)
        return kill


def _turns(victims: Sequence[Victim], kills: int, drawn: random.Random) -> list[Victim]:
    """Every victim as often as every other, give or take one, in an order that is drawn."""
    turns: list[Victim] = []
    while len(turns) < kills:
        turns += drawn.sample(victims, len(victims))
    return turns[:kills]
