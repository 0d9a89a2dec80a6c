"""A saga that pays, and a provider that may do it, or not, and may answer, or not."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import UUID

from pydantic import BaseModel

from outbox_saga import (
    Failure,
    Retry,
    Saga,
    Service,
    StepContext,
    SyncStepContext,
    nothing_to_undo,
)
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from proofs.payments.provider import Provider, Unanswered

Behaviour = Literal[
    "did it, did not answer",
    "did not do it, did not answer",
    "answers after the deadline",
    "does it later",
]
Mode = Literal["idempotent", "query", "both"]
End = Literal["completed", "compensated"]

BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)
MODES: tuple[Mode, ...] = get_args(Mode)
ENDS: tuple[End, ...] = get_args(End)

TIMEOUT = 0.4  # seconds of a call
LEASE = 30.0  # of the orchestrators: their default
SURE = (
    LEASE + TIMEOUT
)  # after which a call can no longer be on its way, and a question is believed


class Payment(BaseModel):
    """What the saga knows."""

    end: str
    behaviour: str | None = None
    charged: bool = False


class Paying:
    """One service, at one database, with one provider.

    Args:
        threads: Its steps are plain `def`.
        stops: This process stands still before its first call reaches the provider.
        declines: The provider says no.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        mode: Mode,
        *,
        threads: bool,
        stops: bool = False,
        declines: bool = False,
    ) -> None:
        self.url = url
        self.provider = Provider(folder, once=mode != "query")
        self.stops, self.declines = stops, declines
        self.mode = mode
        self.saga = self._saga(threads=threads)

    def _saga(self, *, threads: bool) -> Saga[Payment]:
        begun = self._begun

        async def pay(step: StepContext[Payment]) -> Any:
            answer = begun(step)
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                return {"charged": True}
            return answer

        def pay_now(step: SyncStepContext[Payment]) -> Any:
            answer = begun(step)
            if isinstance(answer, float):
                time.sleep(answer)
                return {"charged": True}
            return answer

        def give_back(step: Any) -> None:
            self.provider.refund(str(step.saga_id), step.key)

        def asked(step: Any) -> Any:
            return {"charged": True} if self.provider.knows(step.key) else None

        def confirmed(step: Any) -> Any:
            return None if step.data.end == "completed" else Failure("not confirmed")

        return (
            Saga("pay", data=Payment)
            .step(
                "pay",
                pay_now if threads else pay,
                compensation=_either(give_back, threads=threads),
                external=True,
                idempotent=self.mode != "query",
                query=None if self.mode == "idempotent" else _either(asked, threads=threads),
                timeout=TIMEOUT,
                retry=Retry(max_attempts=4, initial=0.05, max_delay=0.1),
            )
            .step("confirm", _either(confirmed, threads=threads), compensation=nothing_to_undo)
            .check()
        )

    def _begun(self, step: Any) -> Any:
        """The call: seconds until its answer, or the answer."""
        if self.stops:
            self.stops = False
            # to this thread: one sent to the process stops it when any of its threads takes it
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        if self.declines:
            return Failure("declined")
        saga = str(step.saga_id)
        behaviour = step.data.behaviour if step.attempt == 1 else None
        if behaviour == "does it later":
            self.provider.receive(saga, step.key)
            raise Unanswered
        if behaviour != "did not do it, did not answer":
            self.provider.charge(saga, step.key)
        if behaviour == "answers after the deadline":
            return 3 * TIMEOUT
        if behaviour is not None:
            raise Unanswered
        return {"charged": True}

    def service(self, after: float = 0.0) -> Service:
        """As of so many seconds from now."""
        return Service("shop", database=self.url, sagas=[self.saga], clock=Clock(after))

    async def start(self, end: End, behaviour: Behaviour | None) -> UUID:
        """One instance, in a transaction of its own."""
        service = self.service()
        try:
            async with service.unit_of_work() as uow:
                return self.saga.start(uow, Payment(end=end, behaviour=behaviour))
        finally:
            await service.close()

    async def carry_on(self, after: float = 0.0) -> None:
        """As far as it goes by itself, by another process."""
        service = self.service(after)
        orchestrator = service.orchestrator()
        try:
            while await orchestrator.run_once():
                pass
        finally:
            orchestrator.close()
            await service.close()

    async def state(self, id_: UUID) -> str:
        """The status of the instance."""
        service = self.service()
        try:
            found = await service.database.look(sagas.read, service.database.tables, id_)
            assert found is not None
            return found.state.status
        finally:
            await service.close()


def _either(function: Callable[[Any], Any], *, threads: bool) -> Any:
    if threads:
        return function

    async def asynchronous(step: Any) -> Any:
        return function(step)

    return asynchronous
