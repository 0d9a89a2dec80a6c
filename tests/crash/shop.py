"""The shop whose process dies: its messages, its handlers, and sagas with every kind of step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import (
    Event,
    Failure,
    HandlerContext,
    Retry,
    Saga,
    Service,
    StepContext,
    Success,
    SyncHandlerContext,
    SyncStepContext,
    nothing_to_undo,
)
from outbox_saga.envelopes import Envelope
from outbox_saga.messages import Message
from outbox_saga.saga.steps import Action
from tests.crash.message_facts import UNTOLD
from tests.crash.provider import Provider
from tests.crash.tables import effect, handled, intent, move, order

if TYPE_CHECKING:
    from tests.crash.process import Process

PRICE = 25_00
PIECES = 5_00
STEP_TIMEOUT = 0.3  # of the steps that are timed out on purpose
STILL_TIMEOUT = 1.0  # of the steps whose process stands still
PATIENT = Retry(max_attempts=20)  # of steps that may meet a slow machine, too


class Said(Event, topic="crash"):
    """The shop says something."""

    word: str


class Told(Event, topic="crash.told"):
    """The shop is told something, by whom its handlers do not understand at first."""

    word: str


class Asked(Event, topic="crash.asked"):
    """The shop is asked for something that is done outside."""

    word: str


class Grave(Event, topic="crash.grave"):
    """What one attempt decides about: it is handled, or a dead letter of its consumer."""

    word: str


class Stray(Event, topic="crash.stray"):
    """As `Said`, of a topic whose keys go on without what the broker refuses."""

    word: str


class Answered(Event, topic="crash.answers"):
    """A handler answers."""

    word: str


class OrderData(BaseModel):
    """What the sagas carry."""

    order: int
    reserved: bool = False
    charged: bool = False
    answer: str | None = None


def noted(
    publish: Callable[..., UUID],
    message: Message,
    key: str | None,
    *,
    ordered: bool = True,
    **options: Any,
) -> tuple[sa.Insert, UUID]:
    """Publishes; the statement notes that it was done, in the same transaction.

    Args:
        ordered: False for one that gives up its place among those of its key.
        options: Of `publish`.
    """
    id_ = publish(message, key=key, **options)
    return intended(str(id_), key if ordered else None, message.to_body()), id_


def intended(id_: str, key: str | None, body: bytes) -> sa.Insert:
    """The statement that notes what its transaction publishes."""
    return sa.insert(intent).values(message_id=id_, key=key, body=body)


def did(context: StepContext[Any] | SyncStepContext[Any]) -> sa.Insert:
    """The statement that notes a local effect."""
    return sa.insert(effect).values(
        saga_id=str(context.saga_id), step=context.step, direction=context.direction
    )


class Shop:
    """The service in one process.

    Its definitions are the same in every process, its provider is the outside world.

    Args:
        provider: The outside world.
        wanted: The sagas it defines; each costs milliseconds, and thousands of processes are
            started.
        mended: Whether what handlers could not understand has been put right.
    """

    def __init__(
        self,
        provider: Provider,
        wanted: Collection[str],
        mended: Callable[[], object] = lambda: True,
    ) -> None:
        self._provider = provider
        self._mended = mended
        self._wanted = wanted
        self.sagas: dict[str, Saga[OrderData]] = {}
        self._one("local-async", self.reserve, compensation=self.release)
        self._one("local-def", self.pay, compensation=self.pay_back)
        once = {"external": True, "idempotent": True}
        self._one("external-idempotent", self.charge, compensation=self.refund, **once)
        self._one(
            "external-def", self.charge_in_thread, compensation=self.refund_in_thread, **once
        )
        self._one(
            "external-exception",
            self.charge_no_answer,
            compensation=self.refund_no_answer,
            **once,
        )
        asked = {"compensation": self.refund, "external": True, "query": self.was_sent}
        self._one("external-query", self.send, **asked)
        self._one("local-exception", self.reserve_at_last, compensation=self.release_at_last)
        slow = {"timeout": STEP_TIMEOUT, "retry": PATIENT}
        self._one("local-timeout", self.reserve_slowly, compensation=self.release, **slow)
        self._one("external-timeout", self.send_slowly, **asked, **slow)
        self._both("five-steps", self._five)
        still = {"timeout": STILL_TIMEOUT, "retry": PATIENT}
        self._one("still-async", self.reserve, compensation=self.release, **still)
        self._one("still-def", self.pay, compensation=self.pay_back, **still)
        self._one(
            "still-external",
            self.charge,
            compensation=self.refund,
            external=True,
            idempotent=True,
            **still,
        )

    def _one(self, name: str, action: Action, **options: Any) -> None:
        """A saga with this one step."""
        self._both(name, lambda saga: saga.step("a", action, **options))

    def _both(self, name: str, steps: Callable[[Saga[OrderData]], Saga[OrderData]]) -> None:
        """A saga that completes, and one whose last step refuses."""
        if name in self._wanted:
            self.sagas[name] = steps(Saga(name, data=OrderData))
        undone = f"{name}-undone"
        if undone in self._wanted:
            # a lease is as long as the longest step may take
            limit: dict[str, Any] = {"timeout": STILL_TIMEOUT} if name.startswith("still") else {}
            self.sagas[undone] = steps(Saga(undone, data=OrderData)).step(
                "refuse", self.refuse, compensation=nothing_to_undo, **limit
            )

    def _five(self, saga: Saga[OrderData]) -> Saga[OrderData]:
        return (
            saga.step("validate", self.validate, compensation=nothing_to_undo)
            .step("reserve", self.reserve, compensation=self.release)
            .step("charge", self.charge, compensation=self.refund, external=True, idempotent=True)
            .step("pay", self.pay, compensation=self.pay_back)
            .step("send", self.send, compensation=self.refund, external=True, query=self.was_sent)
        )

    def register(self, service: Service) -> None:
        """The handlers."""
        service.on(Said, consumer="crash.async")(self.hear)
        service.on(Said, consumer="crash.def")(self.hear_in_thread)
        service.on(Told, consumer="crash.told-async")(self.hear_at_last)
        service.on(Told, consumer="crash.told-def")(self.hear_at_last_in_thread)
        service.on(Asked, consumer="crash.asked-async", pessimistic=True)(self.act)
        service.on(Asked, consumer="crash.asked-def", pessimistic=True)(self.act_in_thread)
        once = Retry(max_attempts=1)
        service.on(Grave, consumer="crash.grave-park", retry=once)(self.judge)
        skipping: dict[str, Any] = {"consumer": "crash.grave-skip", "retry": once}
        service.on(Grave, poison="skip", **skipping)(self.judge_in_thread)

    def delivers(self, process: Process) -> Callable[[Envelope], Awaitable[object]]:
        """The local broker hands everything to the handlers of this service."""
        return process.service.deliver

    # --- handlers --------------------------------------------------------------------------------

    async def hear(self, handle: HandlerContext[Any], consumer: str = "crash.async") -> None:
        for statement in self._heard(handle, consumer):
            await handle.session.execute(statement)

    def hear_in_thread(self, handle: SyncHandlerContext[Any], consumer: str = "crash.def") -> None:
        for statement in self._heard(handle, consumer):
            handle.session.execute(statement)

    def _heard(
        self, handle: HandlerContext[Any] | SyncHandlerContext[Any], consumer: str
    ) -> tuple[sa.Insert, sa.Insert]:
        """The effect, and the note of the answer."""
        word = f"{consumer.partition('.')[2]} {handle.message.word}"
        answer, _ = noted(handle.publish, Answered(word=word), handle.envelope.key)
        id_ = str(handle.envelope.id)
        return sa.insert(handled).values(consumer=consumer, message_id=id_), answer

    async def hear_at_last(self, handle: HandlerContext[Told]) -> None:
        await self.hear(handle, "crash.told-async")
        self._understand("crash.told-async", handle)

    def hear_at_last_in_thread(self, handle: SyncHandlerContext[Told]) -> None:
        self.hear_in_thread(handle, "crash.told-def")
        self._understand("crash.told-def", handle)

    def _understand(
        self, consumer: str, handle: HandlerContext[Told] | SyncHandlerContext[Told]
    ) -> None:
        """Fails the first two times, after half of the work is done."""
        if self._provider.asked(consumer, handle) < 3 and handle.message.word.endswith("hard"):
            raise LookupError("what?")

    async def act(self, handle: HandlerContext[Asked]) -> None:
        self._provider.asked("crash.asked-async", handle)
        await self.hear(handle, "crash.asked-async")

    def act_in_thread(self, handle: SyncHandlerContext[Asked]) -> None:
        self._provider.asked("crash.asked-def", handle)
        self.hear_in_thread(handle, "crash.asked-def")

    async def judge(self, handle: HandlerContext[Grave]) -> Answered:
        answer, *statements = self._judged(handle, "crash.grave-park")
        for statement in statements:
            await handle.session.execute(statement)
        return answer

    def judge_in_thread(self, handle: SyncHandlerContext[Grave]) -> list[Answered]:
        answer, *statements = self._judged(handle, "crash.grave-skip")
        for statement in statements:
            handle.session.execute(statement)
        return [answer]

    def _judged(self, handle: Any, consumer: str) -> tuple[Answered, sa.Insert, sa.Insert]:
        """The answer, which gets its id when it is returned; the effect, and the note of it."""
        if handle.message.word.endswith("hard") and not self._mended():
            raise LookupError("what?")
        answer = Answered(word=f"{consumer.partition('.')[2]} {handle.message.word}")
        id_ = str(handle.envelope.id)
        effect_of = sa.insert(handled).values(consumer=consumer, message_id=id_)
        return answer, effect_of, intended(UNTOLD, None, answer.to_body())

    # --- local steps -----------------------------------------------------------------------------

    async def validate(self, step: StepContext[OrderData]) -> None:
        await step.session.execute(sa.select(sa.func.count()).select_from(order))

    async def reserve(self, step: StepContext[OrderData]) -> dict[str, bool]:
        for statement in (*move("stock", "reserved", PIECES), did(step)):
            await step.session.execute(statement)
        note, _ = noted(step.publish, Said(word="reserved"), f"order:{step.data.order}")
        await step.session.execute(note)
        return {"reserved": True}

    async def release(self, step: StepContext[OrderData]) -> None:
        for statement in (*move("reserved", "stock", PIECES), did(step)):
            await step.session.execute(statement)
        note, _ = noted(step.publish, Said(word="released"), f"order:{step.data.order}")
        await step.session.execute(note)

    def pay(self, step: SyncStepContext[OrderData]) -> None:
        for statement in (*move("buyer", "shop", PRICE), did(step)):
            step.session.execute(statement)
        note, _ = noted(step.publish, Said(word="paid"), None)
        step.session.execute(note)

    def pay_back(self, step: SyncStepContext[OrderData]) -> None:
        for statement in (*move("shop", "buyer", PRICE), did(step)):
            step.session.execute(statement)

    async def reserve_at_last(self, step: StepContext[OrderData]) -> dict[str, bool]:
        answer = await self.reserve(step)
        if step.attempt < 3:
            raise RuntimeError("the shelf fell over")
        return answer

    async def release_at_last(self, step: StepContext[OrderData]) -> None:
        await self.release(step)
        if step.attempt < 2:
            raise RuntimeError("the shelf fell over again")

    async def reserve_slowly(self, step: StepContext[OrderData]) -> dict[str, bool]:
        answer = await self.reserve(step)
        if step.attempt < 2:
            await asyncio.Event().wait()  # for ever: only its time limit ends it
        return answer

    async def refuse(self, step: StepContext[OrderData]) -> Failure[str]:
        for statement in (*move("buyer", "shop", 1), did(step)):  # half a step that must not stay
            await step.session.execute(statement)
        return Failure("not today")

    # --- external steps --------------------------------------------------------------------------

    async def charge(self, step: StepContext[OrderData]) -> Success[dict[str, bool]]:
        self._provider.act(step, PRICE)
        return Success({"charged": True})

    async def refund(self, step: StepContext[OrderData]) -> None:
        self._provider.act(step, -PRICE)

    def charge_in_thread(self, step: SyncStepContext[OrderData]) -> dict[str, bool]:
        self._provider.act(step, PRICE)
        return {"charged": True}

    def refund_in_thread(self, step: SyncStepContext[OrderData]) -> None:
        self._provider.act(step, -PRICE)

    async def charge_no_answer(self, step: StepContext[OrderData]) -> dict[str, bool]:
        self._provider.act(step, PRICE)
        if step.attempt < 3:
            raise ConnectionError("the answer was lost")
        return {"charged": True}

    async def refund_no_answer(self, step: StepContext[OrderData]) -> None:
        self._provider.act(step, -PRICE)
        if step.attempt < 2:
            raise ConnectionError("the answer was lost")

    async def send(self, step: StepContext[OrderData]) -> dict[str, str]:
        self._provider.act(step, PRICE, once=False)
        return {"answer": "sent"}

    async def send_slowly(self, step: StepContext[OrderData]) -> dict[str, str]:
        self._provider.act(step, PRICE, once=False)
        if step.attempt < 2:
            await asyncio.Event().wait()  # it acted, and its answer never comes
        return {"answer": "sent"}

    async def was_sent(self, step: StepContext[OrderData]) -> dict[str, str] | None:
        return {"answer": "sent"} if self._provider.knows(step) else None


UNDOABLE = {"a", "reserve", "charge", "pay", "send"}
CONSUMERS = {  # of each type
    "Said": ("crash.async", "crash.def"),
    "Told": ("crash.told-async", "crash.told-def"),
    "Asked": ("crash.asked-async", "crash.asked-def"),
    "Grave": ("crash.grave-park", "crash.grave-skip"),
}
ALL_CONSUMERS = {name for names in CONSUMERS.values() for name in names}
ANSWERING = {name.partition(".")[2] for name in ALL_CONSUMERS}
