"""Sending rows as their lanes allow, and sorting what became of them. Knows no database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from uuid import UUID

from outbox_saga.brokers import Accepted, Outcome, Publisher, Refused
from outbox_saga.brokers.contract import ACCEPTED, CONNECTION_LOST
from outbox_saga.brokers.outgoing import unsendable
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerDown, BrokerError, PublishUnconfirmed, Unpublishable
from outbox_saga.queries.relay import Failed, OutboxRow
from outbox_saga.retries import Retry
from outbox_saga_relay.counters import Counters
from outbox_saga_relay.lanes import Lanes
from outbox_saga_relay.outage import Outage

logger = logging.getLogger("outbox_saga.relay")

LONG = 4096  # bytes: bodies that are shorter on average are not worth the time to forget them
# rows: SQLite allows 32,766 parameters a statement, and it has to end well within a lease
REMOVED_AT_ONCE = 5000
CALL_BYTES = 1024 * 1024  # of bodies in one call, about: it holds all of them until its end
BLAMED = 10_000  # messages that are remembered to have asked in vain, when others did not


class Sending:
    """Each row that was taken from the lanes ends as acknowledged, failed, or back in its lane.

    Args:
        publisher: To which broker.
        lanes: Whose rows.
        outage: How many may be on their way.
        retry: Backoff of a message the broker did not take.
        skip: Topics whose keys go on without a dead letter.
        attempts: Failed attempts of a row before this one.
        wake: Called when something has become of a row.
        go_on: Called when a call has ended, before `wake`: what may go now need not wait for it.
    """

    def __init__(
        self,
        publisher: Publisher,
        lanes: Lanes,
        outage: Outage,
        *,
        retry: Retry,
        skip: Collection[str],
        attempts: Callable[[OutboxRow], int],
        counters: Counters,
        wake: Callable[[], None],
        go_on: Callable[[], None],
    ) -> None:
        self.acknowledged: list[OutboxRow] = []
        self.failures: list[Failed] = []
        self.down: BrokerError | None = None  # what the broker said when it last took nothing
        self.publisher = publisher
        self.kept = 0  # bytes of what is settled, but in the hands of a call that is not over
        self._lanes = lanes
        self._outage = outage
        self._retry = retry
        self._skip = frozenset(skip)
        self._attempts = attempts
        self._counters = counters
        self._wake = wake
        self._go_on = go_on
        self._calls: set[asyncio.Task[None]] = set()
        # by position and id, those that asked in vain for a broker that was down by their account,
        # and those of them since which it has taken another one
        self._suspects: dict[tuple[int, UUID], None] = {}
        self._to_blame: dict[tuple[int, UUID], None] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._calls)

    def dispatch(self, batch: int) -> None:
        """Sends what may go now, in calls of at most so many messages beside each other."""
        while self._lanes.ready:
            allowed = self._outage.allowance(self._lanes.flying)
            rows = self._lanes.take(min(batch, allowed), CALL_BYTES) if allowed else []
            if not rows:
                return
            self._outage.sent(len(rows))
            call = asyncio.create_task(self.send(rows))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    async def send(self, rows: Sequence[OutboxRow]) -> None:
        """Publishes these, of each key at most one, and sorts them."""
        lone_probe = self._outage.lasts and len(rows) == 1
        envelopes, sent = self._open(rows)
        done = [False] * len(sent)
        kept = 0

        def settled(index: int, outcome: Outcome) -> None:
            nonlocal kept
            if not done[index]:
                done[index] = True
                size = len(sent[index].body)
                kept += size
                self.kept += size
                self._settle(sent[index], outcome, lone_probe=lone_probe)
                self._wake()

        try:
            outcomes = await self.publisher.publish(envelopes, settled) if sent else ()
            if len(outcomes) != len(sent):
                raise TypeError(f"{len(outcomes)} outcomes of {len(sent)} messages")  # noqa: TRY301 - one place for an adapter's mistakes
        except asyncio.CancelledError:
            for row, is_done in zip(sent, done, strict=True):
                if not is_done:
                    self._lanes.returned(row)
            raise
        except Exception as error:  # noqa: BLE001 - an adapter's mistake, or its broker's
            logger.error("the publisher raised %s", type(error).__name__)  # noqa: TRY400 - a traceback may show a body
            errors = [unsendable(envelope, error) for envelope in envelopes]
            outcomes = [Refused(error) for error in errors]
            dead = [isinstance(error, Unpublishable) for error in errors]
            if any(dead):
                # those to blame go no more; the others go again, and nothing is counted
                for index, row in enumerate(sent):
                    if not done[index] and not dead[index]:
                        done[index] = True
                        self._lanes.returned(row)
        finally:
            self.kept -= kept
        accepted: list[OutboxRow] = []
        for row, outcome, is_done in zip(sent, outcomes, done, strict=True):
            if is_done:
                continue
            if outcome is ACCEPTED:
                accepted.append(row)
            else:
                self._settle(row, outcome, lone_probe=lone_probe)
        self._accept(accepted)

    async def give_up(self) -> None:
        """Nothing is on its way any more; what was is unknown, and still in the outbox."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def take_acknowledged(self, most: int = REMOVED_AT_ONCE) -> list[OutboxRow]:
        """What may be removed from the outbox, so many of it; it is the caller's from now on."""
        acknowledged, self.acknowledged = self.acknowledged[:most], self.acknowledged[most:]
        return acknowledged

    def take_failures(self, most: int) -> list[Failed]:
        """What has to be stored before its keys may be thought of again; so many of it."""
        failures, self.failures = self.failures[:most], self.failures[most:]
        return failures

    def forget(self) -> None:
        """Nothing that was acknowledged or refused is known any more."""
        self.acknowledged, self.failures = [], []
        self._suspects.clear()
        self._to_blame.clear()

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            logger.error("sending failed: %s", type(error).__name__)
        self._go_on()
        self._wake()

    def _open(self, rows: Sequence[OutboxRow]) -> tuple[list[Envelope], list[OutboxRow]]:
        envelopes: list[Envelope] = []
        sent: list[OutboxRow] = []
        for row in rows:
            try:
                envelopes.append(row.envelope())
            except Exception as error:  # noqa: BLE001  # an unreadable row stops no other
                self._fail(row, Unpublishable(str(error), code="unreadable"))
            else:
                sent.append(row)
        return envelopes, sent

    def _settle(self, row: OutboxRow, outcome: Outcome, *, lone_probe: bool) -> None:
        if isinstance(outcome, Accepted):
            self._counters.duplicates += outcome.duplicate
            self._accept([row])
            return
        error = outcome.error
        lost = isinstance(error, PublishUnconfirmed) and error.code == CONNECTION_LOST
        if isinstance(error, BrokerDown) or lost:
            if not (lost or self._outage.lasts) and (row.position, row.id) in self._to_blame:
                # the broker is down for this one alone, again: it waits as any other refused one
                self._fail(row, error)
                return
            if not self._outage.lasts:
                self._counters.outages += 1
            self.down = error
            self._outage.down(error)
            # a message that goes alone and takes the connection with it is to blame
            if not (lost and lone_probe):
                # what is said of the broker may be true of this message alone: next time another
                if lone_probe:
                    self._suspects[row.position, row.id] = None
                self._lanes.returned(row, last=lone_probe)
                return
        self._fail(row, error)

    def _acquit(self, rows: Sequence[OutboxRow]) -> None:
        """The broker takes these: those that asked in vain before them are to blame themselves."""
        self._to_blame |= self._suspects
        self._suspects.clear()
        for row in rows:
            self._to_blame.pop((row.position, row.id), None)
        while len(self._to_blame) > BLAMED:
            del self._to_blame[next(iter(self._to_blame))]

    def _accept(self, rows: Sequence[OutboxRow]) -> None:
        if rows:
            if self._suspects or self._to_blame:
                self._acquit(rows)
            size = self._lanes.accepted(rows)
            # what is removed is named by position and id
            long = size > LONG * len(rows)
            self.acknowledged += [row._replace(body=b"") for row in rows] if long else rows
            self._counters.published += len(rows)
            self._outage.up(len(rows))

    def _fail(self, row: OutboxRow, error: BrokerError) -> None:
        """It stays on its way, as far as its lane knows, until its failure is stored."""
        delay: float | None = None
        skip = row.topic in self._skip
        if isinstance(error, Unpublishable):
            self._counters.dead += 1
            what = "it goes on without it" if skip else "its key is parked"
            logger.error("message %s is a dead letter (%s); %s", row.id, error.code, what)
        else:
            delay = self._retry.delay(self._attempts(row) + 1, seed=str(row.id))
            unknown = isinstance(error, PublishUnconfirmed)
            self._counters.unconfirmed += unknown
            self._counters.refused += not unknown
            kind = "unconfirmed" if unknown else "refused"
            logger.warning(
                "message %s was %s (%s); again in %.1f s", row.id, kind, error.code, delay
            )
        self.failures.append(
            Failed(row, delay, error.code, str(error), skip, type(error).__name__)
        )
