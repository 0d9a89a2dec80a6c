"""One relay whose broker refuses some messages, for now or for good, and leaves some unanswered.

`python -m proofs.chaos.relay_program DATABASE_URL BROKER_URL SEED FLIGHT`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from outbox_saga.brokers import Accepted, Outcome, Publisher, Refused, open_publisher
from outbox_saga.brokers.contract import Settled
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerError, BrokerUnavailable, PublishUnconfirmed, Unpublishable
from outbox_saga.retries import Retry
from outbox_saga_relay.programs import until_signalled
from outbox_saga_relay.relay import Relay
from proofs.chaos.flight import ACCEPTED, FLYING, NOT_NOW, UNHEARD, Flight

REFUSED = 0.02  # of all messages, for now, before they are sent
BURIED = 0.002  # of all, for good
UNANSWERED = 0.01  # of all, after they were stored
SLOW = 0.15  # seconds at most that the broker takes: before it stores a message, or after
HALF = 0.5
LEASE = 2.0
RETRY = Retry(max_attempts=1_000_000, initial=0.05, max_delay=1.0)


class Moody:
    """A publisher of a real broker that takes its time, and says no, or nothing, now and then."""

    def __init__(self, inner: Publisher, chance: random.Random, flight: Flight) -> None:
        self._inner = inner
        self._chance = chance
        self._flight = flight

    async def open(self) -> None:
        """Connects."""
        await self._inner.open()

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """As the broker answers, but for some."""
        outcomes: dict[int, Outcome] = {}
        refused = {i: no for i, e in enumerate(envelopes) if (no := self._refuses(e)) is not None}
        sent = [i for i in range(len(envelopes)) if i not in refused]

        def settle(index: int, outcome: Outcome) -> None:
            if index in outcomes:
                return
            self._flight.change(FLYING, -1)
            outcomes[index] = outcome
            if settled is not None:
                settled(index, outcome)

        def answered(index: int, outcome: Outcome) -> None:
            if sent[index] in outcomes:
                return
            if self._chance.random() < UNANSWERED:
                self._flight.change(UNHEARD)
                outcome = Refused(PublishUnconfirmed("no answer", code="moody"))
            elif isinstance(outcome, Accepted):
                self._flight.change(ACCEPTED)
            settle(sent[index], outcome)

        self._flight.change(FLYING, len(envelopes))
        try:
            for index, no in refused.items():
                settle(index, Refused(no))
            slow_to_answer = self._chance.random() < HALF
            delay = self._chance.uniform(0, SLOW)
            await asyncio.sleep(0 if slow_to_answer else delay)
            answers = await self._inner.publish(
                [envelopes[i] for i in sent], None if slow_to_answer else answered
            )
            await asyncio.sleep(delay if slow_to_answer else 0)
            for index, outcome in enumerate(answers):
                answered(index, outcome)
        finally:
            self._flight.change(FLYING, len(outcomes) - len(envelopes))
        return [outcomes[index] for index in range(len(envelopes))]

    def _refuses(self, envelope: Envelope) -> BrokerError | None:
        chance = self._chance.random()
        if chance < BURIED:
            self._flight.refuses_for_good(str(envelope.id))
            return Unpublishable("never", code="moody")
        if chance < BURIED + REFUSED:
            self._flight.change(NOT_NOW)
            return BrokerUnavailable("not now", code="moody")
        return None

    async def close(self) -> None:
        """Disconnects."""
        await self._inner.close()


def main() -> None:
    """Runs until SIGTERM."""
    database_url, broker_url, seed, flight = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    publisher = Moody(open_publisher(broker_url), random.Random(seed), Flight(Path(flight)))
    database = Database(database_url, pool_size=2)
    relay = Relay(database, publisher, lease=LEASE, poll=0.05, retry=RETRY, page_rows=100)
    until_signalled(relay.run)


if __name__ == "__main__":
    main()
