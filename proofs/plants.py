"""Our code with one rule taken out, for proofs whose processes are not the proof's own.

A proof that has not caught a bug proves nothing. `./dev prove 2.10 --without "a rate is kept"`
puts another function in the place of one of ours, in the proof's process and in all it starts;
the proof must be missed then.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox_saga import inbox
from outbox_saga.brokers import nats_publishing
from outbox_saga.brokers.contract import ACCEPTED
from outbox_saga.participants import Participants
from outbox_saga.queries import dialects, failures, failures_at_once
from outbox_saga.queries import outbox as writing
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.inbox import note_arrival
from outbox_saga_relay import lease as leases
from outbox_saga_relay import listening, outage
from outbox_saga_relay import relay as relays
from outbox_saga_relay import store as stores
from outbox_saga_relay.rate import Rate

RULE = "OUTBOX_SAGA_PROOF_WITHOUT"
PROCESSES = Path(__file__).with_name("planted")
SLOW = 0.05  # seconds that a broker takes


def begin(rule: str) -> None:
    """Without this rule from now on, here and in every process that is started from here."""
    take_out(rule)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROCESSES), *([before] if before else [])])
    os.environ[RULE] = rule


def take_out(rule: str) -> None:
    """Without this rule from now on, in this process."""
    PLANTS[rule]()


def _instead(where: Any, name: str, other: Any) -> Callable[[], None]:
    return lambda: setattr(where, name, other)


# --- order, and what is lost ---------------------------------------------------------------------


def _removed_before_the_ack() -> None:
    """The relay hears "accepted" as soon as it asks; a broker may take its time, or say no."""
    original = nats_publishing.NatsPublisher.publish

    async def publish(self: Any, envelopes: Sequence[Any], settled: Any = None) -> Any:
        if settled is not None:
            for index in range(len(envelopes)):
                settled(index, ACCEPTED)
        await asyncio.sleep(SLOW)
        await original(self, envelopes)
        return [ACCEPTED] * len(envelopes)

    setattr(nats_publishing.NatsPublisher, "publish", publish)  # noqa: B010


# --- when rows are seen --------------------------------------------------------------------------


def _page_waits_for_the_oldest_transaction() -> None:
    """A page has only rows of transactions below the oldest one that is open, of any database."""
    original = stores.Store._exchange
    old = sa.text(
        "SELECT position FROM outbox_saga_outbox "
        "WHERE xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    )

    def exchange(self: Any, *arguments: Any) -> stores.Page:
        with self._database.engine.connect() as connection:
            settled = set(connection.scalars(old))
        page = original(self, *arguments)
        rows = [row for row in page.rows if row.position in settled]
        self.mark.reset()
        return stores.Page(rows, page.full, page.end, page.put_back)

    setattr(stores.Store, "_exchange", exchange)  # noqa: B010


def _the_ear_is_never_asked() -> None:
    listening.HEARTBEAT = 1e9


def _listens_through_a_pooler() -> None:
    original = relays.Relay._ear

    def ear(self: Any) -> Any:
        pooler, self._database.pooler = self._database.pooler, False
        try:
            return original(self)
        finally:
            self._database.pooler = pooler

    setattr(relays.Relay, "_ear", ear)  # noqa: B010


# --- brokers -------------------------------------------------------------------------------------


def _all_probe() -> None:
    """What waits asks for a broker that is away, all of it, and at once."""
    setattr(outage.Outage, "allowance", lambda _self, flying: max(0, 50 - flying))  # noqa: B010


def _any_rate() -> None:
    setattr(outage, "Rate", lambda _most=None: Rate(None))  # noqa: B010


# --- the database --------------------------------------------------------------------------------


def _known_by_its_text() -> None:
    """A deadlock is one if the server says so in English."""
    others = [code for code in dialects._TRANSIENT_SQLSTATES if code != "40P01"]
    setattr(dialects, "_TRANSIENT_SQLSTATES", others)  # noqa: B010


def _reads_with_locks() -> None:
    """A page is read FOR UPDATE at REPEATABLE READ, as in many a relay: gaps are locked, too."""
    original = verbs.read_page

    @functools.cache
    def engine(url: sa.URL) -> sa.Engine:
        return sa.create_engine(url, isolation_level="REPEATABLE READ")

    def read_page(connection: sa.Connection, *arguments: Any) -> Any:
        with engine(connection.engine.url).begin() as other:
            other.exec_driver_sql("SELECT id FROM outbox_saga_outbox FOR UPDATE SKIP LOCKED")
            time.sleep(SLOW)
        return original(connection, *arguments)

    setattr(verbs, "read_page", read_page)  # noqa: B010


def _nothing_is_blocked() -> None:
    _instead(failures, "_block", lambda *_: None)()
    _instead(failures_at_once, "store_retries", _all_stored)()


def _all_stored(*told: Any, **_: Any) -> list[Any]:
    return [failed for failed, _ in told[-1]]


def _keeps_its_lease() -> None:
    """A relay that ends leaves its partitions leased until the lease is over."""

    async def release_lease(self: Any) -> None:
        await self._connection.run(self._connection.give_up)

    setattr(leases.Lease, "release", release_lease)  # noqa: B010


# --- what happens once ---------------------------------------------------------------------------


def _handled_each_time() -> None:
    """What is delivered again is handled again."""

    def each_time(*told: Any, **more: Any) -> Any:
        arrival = note_arrival(*told, **more)
        return "new" if arrival == "repeat" else arrival

    _instead(inbox, "note_arrival", each_time)()


PLANTS: dict[str, Callable[[], None]] = {
    # 2.6; scenarios 6, 7, 8
    "a refused key waits": _nothing_is_blocked,
    "removed after the ack": _removed_before_the_ack,
    "writers of one key wait for each other": _instead(writing, "lock_numbers", lambda _: []),
    # scenario 9
    "a page waits for no transaction": _page_waits_for_the_oldest_transaction,
    # 11
    "one probe at a time": _all_probe,
    "a rate is kept": _any_rate,
    # 12
    "what is too large is not sent": _instead(nats_publishing, "largest", lambda _: 1 << 40),
    # 16
    "an ear that is deaf is made anew": _the_ear_is_never_asked,
    # 17
    "nobody LISTENs through a pooler": _listens_through_a_pooler,
    # 18
    "a deadlock is known by its code": _known_by_its_text,
    # 19
    "a page locks nothing": _reads_with_locks,
    # 28
    "whoever ends gives its lease back": _keeps_its_lease,
    # 3.5
    "a command is carried out once": _instead(Participants, "_enter", lambda *_: None),
    "a message is handled once": _handled_each_time,
}
