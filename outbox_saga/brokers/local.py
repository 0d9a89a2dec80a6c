"""The embedded broker: the relay hands messages to this service's own handlers, through the inbox.

No server.

A message is `Accepted` when every handler of the service has handled it and committed, or has it
waiting among its own (`inbox_waiting`), where `outbox-saga consume` or `run` tries it again. A
message that no handler of this process wants is accepted and gone, as by any broker without
subscribers. So during a rolling deployment the relay of an old release loses new types: see "What
does not" in docs/guarantees.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from outbox_saga.brokers.contract import ACCEPTED, Capabilities, Outcome, Refused, Settled
from outbox_saga.brokers.outgoing import check_outgoing
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable, HandlerBusy, MessageRefused, Unpublishable

logger = logging.getLogger("outbox_saga.brokers.local")

CAPABILITIES: Final = Capabilities(
    deduplicates=False,  # the inbox does
    unheard="gone",
    consuming=None,  # the relay hands over
)


class LocalPublisher:
    """Publishes by calling `deliver`, which handles the message or raises.

    Args:
        deliver: Hands one envelope to the service's handlers; 0 says that none wanted it.
        concurrency: Envelopes at the same time.
        timeout: Seconds for one envelope, None: as many as the handlers need, who have their own;
            then it is tried again later, and the inbox drops what was done.
    """

    def __init__(
        self,
        deliver: Callable[[Envelope], Awaitable[object]],
        *,
        concurrency: int = 16,
        timeout: float | None = 60.0,
    ) -> None:
        self._deliver = deliver
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._unwanted: set[tuple[str, str]] = set()

    async def open(self) -> None:
        """Nothing to connect."""

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """One outcome per envelope, in their order."""

        async def one(index: int, envelope: Envelope) -> Outcome:
            outcome = await self._publish(envelope)
            if settled is not None:
                settled(index, outcome)
            return outcome

        outcomes = await asyncio.gather(
            *(one(*each) for each in enumerate(envelopes)), return_exceptions=True
        )
        return [_outcome(outcome) for outcome in outcomes]

    async def _publish(self, envelope: Envelope) -> Outcome:
        async with self._slots:
            try:
                check_outgoing(envelope)  # as any broker: what works here works there
                async with asyncio.timeout(self._timeout):
                    wanted = await self._deliver(envelope)
            except HandlerBusy as error:
                return Refused(BrokerUnavailable(str(error), code="handler_busy"))
            except Unpublishable as error:
                return Refused(error)
            except MessageRefused as error:
                return Refused(Unpublishable(str(error), code="unreadable"))
            except TimeoutError:
                return Refused(
                    BrokerUnavailable("a handler took too long", code="handler_timeout")
                )
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # the handler awaited a task that somebody else cancelled; nobody cancelled us
                return Refused(
                    BrokerUnavailable("a handler was cancelled from inside", code="handler_failed")
                )
            except (Exception, SystemExit) as error:  # noqa: BLE001  # users' code: whatever
                # type and first line only: a handler's message may carry what it was working on
                return _failed(error)
        if wanted == 0:
            self._tell_unwanted(envelope)
        return ACCEPTED

    def _tell_unwanted(self, envelope: Envelope) -> None:
        kind = (envelope.topic, envelope.type)
        if kind not in self._unwanted:
            self._unwanted.add(kind)
            logger.info("no handler here wants %s of topic %s", envelope.type, envelope.topic)

    async def close(self) -> None:
        """Nothing to disconnect."""


def _failed(error: BaseException) -> Refused:
    return Refused(
        BrokerUnavailable(f"a handler raised {type(error).__name__}", code="handler_failed")
    )


def _outcome(answer: Outcome | BaseException) -> Outcome:
    """A handler may cancel the very task it runs in: that ends one delivery, not the relay."""
    if isinstance(answer, asyncio.CancelledError | SystemExit):
        return _failed(answer)
    if isinstance(answer, BaseException):
        raise answer
    return answer
