"""8: A publishes and stands still for 30 s before its commit, while others commit."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from outbox_saga.database import Database
from outbox_saga.unit_of_work import UnitOfWork
from proofs.peril.brood import until
from proofs.peril.ear import Ear, ear
from proofs.registry import Outcome
from proofs.scenes.world import TOPIC, TYPE, World, intended, told, world

STILL = 30.0  # seconds
AT_ONCE = 1.0  # seconds
PAUSE = 0.25  # seconds between two commits of others
PLACES = ("before its insert", "between its insert and its COMMIT")


def show() -> Outcome:
    """Both places at the same time, each with its own keys."""
    with world() as on, ear(on.nats.url) as heard, on.relay():
        early, late = _Late(on, heard, "early", PLACES[0]), _Late(on, heard, "late", PLACES[1])
        for one in (early, late):
            one.begin()
        others: list[float] = []
        while not (early.has_committed and late.has_committed):
            others.append(_commit(on, heard, f"other{len(others) % 7}"))
            time.sleep(PAUSE)
        for one in (early, late):
            one.end()
        on.quiesce()
        violations, counts = on.check()
    wrong = [text for one in (early, late) for text in one.wrong()]
    if early.order() != ["B", "A"]:
        wrong.append(f"{PLACES[0]}: B committed first, and they came as {early.order()}")
    if late.order() != ["A", "B"]:
        wrong.append(f"{PLACES[1]}: A committed first, and they came as {late.order()}")
    if late.b_committed - late.b_began < STILL / 2:
        wrong.append("the writer of the same key did not wait")
    good = not violations and not wrong and len(others) >= STILL / 2 and max(others) <= AT_ONCE
    return Outcome(
        good,
        {
            "seconds A stood still": [round(one.stood, 1) for one in (early, late)],
            "others committed meanwhile": len(others),
            "their events came after, ms": {
                "median": round(statistics.median(others) * 1000, 1),
                "most": round(max(others) * 1000, 1),
            },
            PLACES[0]: early.shown(),
            PLACES[1]: late.shown(),
            "wrong": wrong,
            **counts,
            "first violations": told(violations),
        },
    )


class _Late:
    """A, which stands still, and B, which publishes with the same key meanwhile.

    Args:
        key: Of both.
        place: Where A stands still.
    """

    def __init__(self, on: World, heard: Ear, key: str, place: str) -> None:
        self._on = on
        self._heard = heard
        self._key = key
        self._place = place
        self._standing = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(of,)) for of in (self._a, self._b)
        ]
        self._errors: list[BaseException] = []
        self._ids: dict[str, str] = {}
        self.has_committed = False
        self.stood = 0.0
        self.a_before = self.a_committed = self.b_began = self.b_committed = 0.0

    def begin(self) -> None:
        """A is begun; B as soon as A stands still."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Both have committed, and their events have come."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        until(lambda: set(self._ids.values()) <= set(self._heard.first), "both events")

    def _run(self, what: Callable[[], None]) -> None:
        try:
            what()
        except BaseException as error:  # noqa: BLE001 - raised where the thread is joined
            self._errors.append(error)
            self.has_committed = True

    def _a(self) -> None:
        database = Database(self._on.database.url)  # of its own: its commits are held up
        database.engine.connect().close()
        commit = database.engine.dialect.do_commit
        if self._place == PLACES[1]:

            def held(connection: Any) -> None:
                self._stand()
                commit(connection)

            setattr(database.engine.dialect, "do_commit", held)  # noqa: B010 - a seam
        with database.begin() as connection:
            body = b'{"who":"A"}'
            uow = UnitOfWork(connection)
            id_ = uow.publish_body(body, topic=TOPIC, type=TYPE, key=self._key)
            self._ids["A"] = str(id_)
            if self._place == PLACES[0]:
                self._stand()
            connection.execute(intended(id_, self._key, body))
        self.a_committed = time.monotonic()
        self.has_committed = True
        database.dispose()

    def _stand(self) -> None:
        began = time.monotonic()
        self._standing.set()
        time.sleep(STILL)
        self.stood = time.monotonic() - began
        self.a_before = time.monotonic()

    def _b(self) -> None:
        self._standing.wait(STILL)
        self.b_began = time.monotonic()
        with self._on.database.begin() as connection:
            self._ids["B"] = self._on.publish(connection, b'{"who":"B"}', key=self._key)
        self.b_committed = time.monotonic()

    def order(self) -> list[str]:
        """In which they came."""
        return sorted(self._ids, key=lambda who: self._heard.first[self._ids[who]])

    def wrong(self) -> list[str]:
        """Of A's event, and of B's."""
        a, b = (self._heard.first[self._ids[who]] for who in ("A", "B"))
        found = []
        if not self.a_before <= a <= self.a_committed + AT_ONCE:
            found.append(f"{self._place}: A's event came {a - self.a_committed:.2f} s after it")
        if b > self.b_committed + AT_ONCE:
            found.append(f"{self._place}: B's event came {b - self.b_committed:.2f} s after it")
        return found

    def shown(self) -> dict[str, Any]:
        """For an Outcome."""
        a, b = (self._heard.first[self._ids[who]] for who in ("A", "B"))
        return {
            "came in the order": self.order(),
            "A's event after its commit, ms": round((a - self.a_committed) * 1000, 1),
            "B's commit took, s": round(self.b_committed - self.b_began, 2),
            "B's event after its commit, ms": round((b - self.b_committed) * 1000, 1),
        }


def _commit(on: World, heard: Ear, key: str) -> float:
    with on.database.begin() as connection:
        id_ = on.publish(connection, b'{"who":"other"}', key=key)
    committed = time.monotonic()
    until(lambda: id_ in heard.first, "another's event")
    return max(0.0, heard.first[id_] - committed)
