"""A service that goes on publishing while its relays are in trouble."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proofs.scenes.world import World

MOST = 10  # messages of one transaction
KEYS = 12
ROLLED_BACK = 0.1


class _Doomed(Exception):
    """This transaction must not commit."""


class Load:
    """Transactions one after another, each of some messages; so commits have an order.

    Args:
        seed: Of what is published.
        waits: No more is published while it says so.
        pause: Seconds between two transactions.
    """

    def __init__(
        self, on: World, seed: str, *, waits: Callable[[int], bool], pause: float = 0.0
    ) -> None:
        self._on = on
        self._chance = random.Random(seed)
        self._waits = waits
        self._pause = pause
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None
        self.committed: dict[str, float] = {}  # id, and when its commit had returned
        self.rolled_back = 0

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """No more is published. Raises what has gone wrong."""
        self._enough.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                if self._waits(len(self.committed)):
                    self._enough.wait(0.005)
                    continue
                self._commit_one()
                self._enough.wait(self._pause)
        except BaseException as error:  # noqa: BLE001 - raised where the thread is joined
            self._error = error

    def _commit_one(self) -> None:
        chance = self._chance
        doomed = chance.random() < ROLLED_BACK
        ids = []
        try:
            with self._on.database.begin() as connection:
                for _ in range(chance.randint(1, MOST)):
                    number = chance.randrange(KEYS + 2)
                    key = f"key{number}" if number < KEYS else None
                    body = json.dumps({"n": chance.getrandbits(40), "doomed": doomed}).encode()
                    ids.append(self._on.publish(connection, body, key=key))
                if doomed:
                    raise _Doomed  # noqa: TRY301 - as service code does
        except _Doomed:
            self.rolled_back += 1
            return
        now = time.monotonic()
        self.committed.update(dict.fromkeys(ids, now))


@contextmanager
def load(
    on: World, seed: str, *, waits: Callable[[int], bool], pause: float = 0.0
) -> Iterator[Load]:
    """One, for the time of the block."""
    made = Load(on, seed, waits=waits, pause=pause)
    made.start()
    try:
        yield made
    finally:
        made.stop()
