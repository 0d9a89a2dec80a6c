"""One relay whose broker refuses some messages and leaves some unanswered.

`python -m proofs.chaos.relay_program DATABASE_URL BROKER_URL SEED`.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Sequence

from outbox_saga.brokers import Outcome, Publisher, Refused, open_publisher
from outbox_saga.brokers.contract import Settled
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable, PublishUnconfirmed
from outbox_saga.retries import Retry
from outbox_saga_relay.programs import until_signalled
from outbox_saga_relay.relay import Relay

REFUSED = 0.01  # of all messages, before they are sent
UNANSWERED = 0.01  # of all, after they were stored
LEASE = 2.0
RETRY = Retry(max_attempts=1_000_000, initial=0.05, max_delay=1.0)


class Moody:
    """A publisher of a real broker that says no, or nothing, now and then."""

    def __init__(self, inner: Publisher, chance: random.Random) -> None:
        self._inner = inner
        self._chance = chance

    async def open(self) -> None:
        """Connects."""
        await self._inner.open()

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """As the broker answers, but for some."""
        refused = [self._chance.random() < REFUSED for _ in envelopes]
        sent = [e for e, no in zip(envelopes, refused, strict=True) if not no]
        answers = iter(await self._inner.publish(sent))
        outcomes: list[Outcome] = []
        for no in refused:
            outcome: Outcome = (
                Refused(BrokerUnavailable("not now", code="moody")) if no else next(answers)
            )
            if not no and self._chance.random() < UNANSWERED:
                outcome = Refused(PublishUnconfirmed("no answer", code="moody"))
            outcomes.append(outcome)
            if settled is not None:
                settled(len(outcomes) - 1, outcome)
        return outcomes

    async def close(self) -> None:
        """Disconnects."""
        await self._inner.close()


def main() -> None:
    """Runs until SIGTERM."""
    database_url, broker_url, seed = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    publisher = Moody(open_publisher(broker_url), random.Random(seed))
    database = Database(database_url, pool_size=2)
    relay = Relay(database, publisher, lease=LEASE, poll=0.05, retry=RETRY, page_rows=100)
    until_signalled(relay.run)


if __name__ == "__main__":
    main()
