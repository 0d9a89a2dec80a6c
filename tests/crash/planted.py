"""Our code, and three ways to get it wrong.

An explorer that has not caught a bug proves nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID, uuid5

from outbox_saga.database import Database
from outbox_saga.lent_session import LentSession
from outbox_saga.queries.delayed import Delayed
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.execution import Execution
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Call, Decision, Done, Happened
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.saga.steps import Action, Step
from outbox_saga_relay.relay import Relay

MakeOrchestrator = Callable[[Database, Iterable[Saga[Any]]], Orchestrator]
MakeRelay = Callable[..., Relay]


@dataclasses.dataclass(frozen=True)
class Code:
    """Which code a process runs."""

    name: str
    orchestrator: MakeOrchestrator = Orchestrator
    relay: MakeRelay = Relay


class MarksBeforePublishing(Relay):
    """Removes a page from the outbox, then publishes it."""

    async def run_once(self) -> int:
        if not self.store.lease.epochs and not await self._begin():
            return 0
        page = (await self.store.exchange([], self._page_rows)).rows
        if page:
            await self.store.exchange(page, 0)
            for row in page:
                await self.publisher.publish([row.envelope()])
        return len(page)


class RemakesTheKey(Execution):
    """The idempotency key depends on the attempt."""

    async def _outside(
        self, hand: Hand, todo: Call, step: Step, action: Action, *, asking: bool = False
    ) -> tuple[Happened, list[Delayed]]:
        def remade(context: Any) -> Any:
            context.key = str(uuid5(UUID(context.key), str(todo.attempt)))
            return action(context)

        async def remade_async(context: Any) -> Any:
            return await remade(context)

        kind = remade_async if inspect.iscoroutinefunction(action) else remade
        return await super()._outside(hand, todo, step, kind, asking=asking)


class CommitsTheEffectFirst(Execution):
    """A local step's effect is committed.

    And its progress afterwards, in a transaction of its own.
    """

    def _settle(self, session: LentSession, hand: Hand, happened: Done) -> Decision:
        session.flush()
        session.taken_back()
        session.settle()
        engine: Any = session.get_bind()
        with engine.begin() as connection:
            decision, instance = self.recording.record(connection, hand, happened, [])
        hand.advance(instance, leased=decision.busy)
        return decision


def _with(execution: type[Execution]) -> MakeOrchestrator:
    def make(database: Database, definitions: Iterable[Saga[Any]]) -> Orchestrator:
        orchestrator = Orchestrator(database, definitions)
        orchestrator._carrying._execution = execution(database, orchestrator._threads)
        return orchestrator

    return make


SOUND = Code("as it is")
PLANTED = {
    code.name: code
    for code in (
        Code("mark before publish", relay=MarksBeforePublishing),
        Code("key re-made on retry", orchestrator=_with(RemakesTheKey)),
        Code("effect and progress in two transactions", orchestrator=_with(CommitsTheEffectFirst)),
    )
}
