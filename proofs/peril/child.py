"""A relay in a process of its own, which may die or stand still at a point of its way.

The points between the broker's ack and the mark, which is the commit of the DELETE:

    ack          the broker's ack of a message has just been heard
    delete       before the DELETE of acknowledged rows
    commit       that DELETE is on its way, its COMMIT is not
    handed over  the COMMIT is on its way too, its answer has not been heard
    retried      before the DELETE of a row whose key has waited for it
    failure      before the row that says that a key waits
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.brokers import Outcome, Publisher, open_publisher
from outbox_saga.brokers.contract import ACCEPTED, Refused, Settled
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable
from outbox_saga.retries import Retry
from outbox_saga.testing.crash_points import CrashPoints
from outbox_saga_relay.cli import main as program
from outbox_saga_relay.programs import until_signalled
from outbox_saga_relay.relay import Relay

POLL = 0.05  # seconds
RETRY = Retry(max_attempts=1_000_000, initial=0.1, max_delay=0.5)
_PLACES = {
    "before WITH gone AS ( DELETE FROM outbox_saga_outbox": "delete",
    "before DELETE FROM outbox_saga_outbox": "retried",
    "before INSERT INTO outbox_saga_blocked_key": "failure",
    "ack": "ack",
}


@dataclass(frozen=True)
class Orders:
    """What one child is told.

    Args:
        name: Of its sessions at the database, and of its files.
        folder: For these: `<name>.sent`, ids of what it is about to give to the broker;
            `<name>.fell`, the point, written there; `<name>.log`.
        where: The point it falls at; empty: it does not.
        after: How often it comes past that point before.
        stop: It stands still there, and goes on when it is continued; else it is killed.
        mute: What it sends does not reach the broker, and it is told nothing of it.
        refuse: It is told of every so many-th message, the first time, that the broker is not
            able to take it.
        relay: Options of `Relay`.
    """

    name: str
    url: str
    broker: str
    folder: Path
    where: str = ""
    after: int = 0
    stop: bool = False
    mute: bool = False
    refuse: int = 0
    relay: dict[str, Any] = field(default_factory=dict)


class Points(CrashPoints):
    """Falls once, at a point that is known by its place and not by its number."""

    def __init__(self, orders: Orders) -> None:
        super().__init__()
        self._orders = orders
        self._left = orders.after
        self._removes = False
        self._connection: Any = None

    def watch_engine(self, engine: sa.Engine) -> None:
        """As of `CrashPoints`; and knows through which connection a DELETE has gone."""
        super().watch_engine(engine)
        event.listen(engine, "checkout", self._checked_out)

    def _checked_out(self, dbapi_connection: Any, *_: Any) -> None:
        self._connection = dbapi_connection

    def point(self, name: str) -> None:
        """As of `CrashPoints`."""
        place = self._place(name)
        if not place or place != self._orders.where or self._left < 0:
            return
        self._left -= 1
        if self._left < 0:
            self._fall(place)

    def _place(self, name: str) -> str:
        place = next((p for told, p in _PLACES.items() if name.startswith(told)), "")
        if place == "delete":
            self._removes = True
        elif self._removes and name == "before COMMIT":
            return "commit"
        elif self._removes and name == "after COMMIT":
            self._removes = False
            return "handed over"
        return place

    def _fall(self, place: str) -> None:
        if place == "commit":  # the server has the DELETE by now, as if its text were long
            driver = getattr(self._connection, "driver_connection", self._connection)
            with contextlib.suppress(AttributeError):
                driver.pgconn.send_flush_request()
                driver.pgconn.flush()
        path = self._orders.folder / f"{self._orders.name}.fell"
        path.write_text(place)
        # to this very thread: sent to the process, it would go a few steps further meanwhile
        number = signal.SIGSTOP if self._orders.stop else signal.SIGKILL
        signal.pthread_kill(threading.get_ident(), number)


class Told:
    """A publisher that writes down what it is about to send, and comes to a point at each ack."""

    def __init__(self, inner: Publisher, orders: Orders, points: Points) -> None:
        self._inner = inner
        self._orders = orders
        self._points = points
        self._sent = (orders.folder / f"{orders.name}.sent").open("ab", buffering=0)
        self._count = 0
        self._refused: set[str] = set()

    async def open(self) -> None:
        """Connects."""
        await self._inner.open()

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """As the broker answers, but for those that are refused."""
        outcomes: dict[int, Outcome] = {}

        def settle(index: int, outcome: Outcome) -> None:
            if index in outcomes:
                return
            outcomes[index] = outcome
            if settled is not None:
                settled(index, outcome)
            if outcome is ACCEPTED:
                self._points.point("ack")

        sent = [i for i, envelope in enumerate(envelopes) if not self._refuses(envelope)]
        for index in set(range(len(envelopes))) - set(sent):
            settle(index, Refused(BrokerUnavailable("not now", code="not_now")))
        self._sent.write(b"".join(b"%s\n" % str(envelopes[i].id).encode() for i in sent))
        if self._orders.mute:
            await _for_ever()
        answers = await self._inner.publish(
            [envelopes[i] for i in sent], lambda i, outcome: settle(sent[i], outcome)
        )
        for index, outcome in zip(sent, answers, strict=True):
            settle(index, outcome)
        return [outcomes[index] for index in range(len(envelopes))]

    def _refuses(self, envelope: Envelope) -> bool:
        id_ = str(envelope.id)
        if not self._orders.refuse or id_ in self._refused:
            return False
        self._count += 1
        if self._count % self._orders.refuse:
            return False
        self._refused.add(id_)
        return True

    async def close(self) -> None:
        """Disconnects."""
        await self._inner.close()


async def _for_ever() -> None:
    import asyncio

    await asyncio.get_running_loop().create_future()


def relay(orders: Orders) -> None:
    """The process: a relay until SIGTERM."""
    logging.basicConfig(
        level=logging.WARNING, filename=orders.folder / f"{orders.name}.log", force=True
    )
    points = Points(orders)
    url = sa.make_url(orders.url).update_query_dict({"application_name": orders.name})
    database = Database(url, pool_size=2)
    points.watch_engine(database.program_engine)
    publisher = Told(open_publisher(orders.broker), orders, points)
    made = Relay(database, publisher, **{"poll": POLL, "retry": RETRY, **orders.relay})
    until_signalled(made.run)


def command(arguments: Sequence[str], log: Path) -> None:
    """The process: `outbox-saga` with these arguments, as an operator starts it."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = ["outbox-saga", *arguments]
    program()
