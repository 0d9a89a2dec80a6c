"""A service whose saga has five steps, two of them in parallel, that each move 100 cents.

Each step may be of any kind; a fault may be at one of them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Command, Failure, NotDone, Retry, Saga, Service, SyncStepContext
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.envelopes import Envelope
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.relay import pending
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay
from proofs.payments.provider import Provider

Kind = Literal["local", "idempotent", "query", "command"]
Mode = Literal[
    "Failure after partial writes",
    "exception until retries end",
    "timeout",
    "crash before",
    "crash after",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODES: tuple[Mode, ...] = get_args(Mode)
CRASHES: tuple[Mode, ...] = ("crash before", "crash after")
STEPS = ("s1", "s2", "s3", "s4", "s5")
AFTER = {"s1": (), "s2": ("s1",), "s3": ("s1",), "s4": ("s2", "s3"), "s5": ("s4",)}
CENTS, BUYER = 100, 10_000
TIMEOUT = 0.25  # seconds of one attempt of the step that is out of time
PLENTY = 25.0  # of any other, however busy the machine is
LEASE = 30.0
RELAY_LEASE = 1.0  # seconds
DEAD = 9  # exit code of a process that has crashed
ATTEMPTS = 2

metadata = sa.MetaData()
account = sa.Table(
    "five_account",
    metadata,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("cents", sa.Integer, nullable=False),
)
effect = sa.Table(
    "five_effect",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("tag", sa.String(40), nullable=False),
    sa.Column("step", sa.String(10), nullable=False),
    sa.Column("direction", sa.String(10), nullable=False),
)


class Data(BaseModel):
    """What the saga knows: who it is, for those that it commands."""

    tag: str


def _command(name: str) -> type[Command]:
    class Made(Command, topic="five", name=name):
        tag: str

    return Made


DO = {step: _command(f"Do.{step}") for step in STEPS}
UNDO = {step: _command(f"Undo.{step}") for step in STEPS}

Plan: TypeAlias = dict[str, Kind]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, at which step.

    Args:
        times: So often, then it goes well; None: every time.
    """

    step: str
    mode: Mode
    times: int | None = None


class World:
    """The service at one database, as one process has it.

    Args:
        plan: The kind of each step.
        pivot: The step from which on it can only go forward.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        plan: Plan,
        *,
        threads: bool,
        fault: Fault | None = None,
        pivot: str | None = None,
    ) -> None:
        self.url, self.threads, self.fault = url, threads, fault
        self.once = Provider(folder, once=True)
        self.often = Provider(folder, once=False)
        self._hit = 0
        self.saga = self._saga(plan, pivot)
        self.plan = plan

    # --- the definition --------------------------------------------------------------------------

    def _saga(self, plan: Plan, pivot: str | None) -> Saga[Data]:
        saga = Saga("five", data=Data)
        for step in STEPS:
            kind = plan[step]
            options: dict[str, Any] = {"after": AFTER[step], "pivot": step == pivot}
            if pivot is None or pivot not in AFTER[step]:
                # else it is tried for long, as whoever says nothing has it beyond a pivot: a
                # thread that is out of time still holds its rows while two attempts are over
                options["retry"] = Retry(max_attempts=ATTEMPTS, initial=0.02, max_delay=0.05)
            if kind == "command":
                saga.step(step, DO[step], compensation=UNDO[step], timeout=5.0, **options)
                continue
            if kind != "local":
                options |= {"external": True, "idempotent": kind == "idempotent"}
            if kind == "query":
                options["query"] = self._either(self._asks)
            act = self._local if kind == "local" else self._outside
            saga.step(
                step,
                self._either(act),
                compensation=self._either(act),
                timeout=TIMEOUT if self._is_out_of_time(step) else PLENTY,
                **options,
            )
        return saga.check()

    def _is_out_of_time(self, step: str) -> bool:
        return self.fault is not None and (self.fault.step, self.fault.mode) == (step, "timeout")

    def _either(self, act: Callable[[Any], Any]) -> Any:
        """As `def`, or as `async def`: there what it does runs in the session's greenlet."""
        if self.threads:

            def plain(step: SyncStepContext[Data]) -> Any:
                answer = act(step)
                if isinstance(answer, float):
                    time.sleep(answer)
                    return None
                return answer

            return plain

        async def asynchronous(step: Any) -> Any:
            if getattr(step, "_uow", None) is None:
                answer = act(step)
            else:
                answer = await step.session.run_sync(lambda session: act(_Plain(step, session)))
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                return None
            return answer

        return asynchronous

    def _local(self, step: Any) -> Any:
        return self._moves(step.session, step.step, step.data.tag, step.direction)

    def _moves(self, session: Any, step: str, tag: str, direction: str) -> Any:
        """Half of it, the fault, and the other half."""
        cents = CENTS if direction == "do" else -CENTS
        fault = self._fault(step) if direction == "do" else None
        if fault == "crash before":
            os._exit(DEAD)
        session.execute(_add("buyer", -cents))
        if fault == "Failure after partial writes":
            return Failure("no")
        if fault == "exception until retries end":
            raise RuntimeError("trouble")
        session.execute(_add(step, cents))
        session.execute(sa.insert(effect).values(tag=tag, step=step, direction=direction))
        if fault == "crash after":
            os._exit(DEAD)
        return 3 * TIMEOUT if fault == "timeout" else None

    def _outside(self, step: Any) -> Any:
        name, kind = f"{step.data.tag} {step.step}", self.plan[step.step]
        provider = self.often if kind == "query" else self.once
        if step.direction == "undo":
            provider.refund(name, step.key)
            return None
        fault = self._fault(step.step)
        if fault == "crash before":
            os._exit(DEAD)
        if fault == "Failure after partial writes":
            return Failure("no")  # what the other side had begun, it has taken back
        if fault == "exception until retries end":
            raise NotDone("trouble")
        if fault == "timeout":
            if kind == "idempotent" and step.attempt > ATTEMPTS:
                return Failure("no")  # asked until it said so
            return 3 * TIMEOUT
        provider.charge(name, step.key)
        if fault == "crash after":
            os._exit(DEAD)
        return None

    def _asks(self, step: Any) -> Any:
        return {} if self.often.knows(step.key) else None

    def _fault(self, step: str) -> Mode | None:
        fault = self.fault
        if fault is None or fault.step != step:
            return None
        self._hit += 1
        return None if fault.times is not None and self._hit > fault.times else fault.mode

    # --- as a process ----------------------------------------------------------------------------

    def service(self, later: float = 0.0) -> Service:
        """The service, so many seconds from now; it also carries out what its saga commands."""
        made = Service("five", database=self.url, sagas=[self.saga], clock=Clock(later))
        for step in STEPS:
            self._takes_part(made, step)
        return made

    def _takes_part(self, service: Service, step: str) -> None:
        def does(handle: Any, session: Any) -> Any:
            return self._moves(session, step, handle.message.tag, "do")

        def undoes(handle: Any, session: Any) -> Any:
            return self._moves(session, step, handle.message.tag, "undo")

        for command, undo, act in ((DO[step], UNDO[step], does), (UNDO[step], None, undoes)):
            service.handles(command, undo=undo)(self._handler(act))

    def _handler(self, act: Callable[[Any, Any], Any]) -> Any:
        if self.threads:
            return lambda handle: act(handle, handle.session)

        async def asynchronous(handle: Any) -> Any:
            return await handle.session.run_sync(lambda session: act(handle, session))

        return asynchronous

    async def start(self, tag: str) -> UUID:
        """One instance."""
        service = self.service()
        try:
            async with service.unit_of_work() as uow:
                return self.saga.start(uow, Data(tag=tag))
        finally:
            await service.close()

    async def goes_on(self, later: float = 0.0) -> None:
        """Until nothing moves any more, so many seconds from now."""
        service = self.service(later)

        async def deliver(envelope: Envelope) -> int:
            if self._is_lost(envelope):
                return 1  # for the broker it is gone, and nobody answers
            return await service.deliver(envelope)

        publisher = LocalPublisher(deliver, concurrency=4, timeout=30.0)
        orchestrator = service.orchestrator()
        try:
            moved, last = 1, time.monotonic()
            while moved or (
                time.monotonic() < last + 2 * RELAY_LEASE
                and await service.database.look(pending, service.database.tables)
            ):
                last = time.monotonic() if moved else last
                moved = 0
                while count := await orchestrator.run_once():
                    moved += count
                # one that has died in the case before has a share of the partitions for so long
                relay = Relay(service.database, publisher, listen=False, lease=RELAY_LEASE)
                moved += await relay.run_until_empty()
                moved += await service.waiting_room().run_once()
        finally:
            orchestrator.close()
            await service.close()

    def _is_lost(self, envelope: Envelope) -> bool:
        fault = self.fault
        if fault is None or fault.mode != "timeout" or envelope.type != f"Do.{fault.step}":
            return False
        return self._fault(fault.step) is not None

    async def seen(self, id_: UUID) -> tuple[str, list[tuple[str, str | None]]]:
        """The status, and the history."""
        service = self.service()
        try:
            seen, history = await SagaOperations(service.database).show(id_)
            rows = [(h.entry.transition, h.entry.step) for h in history]
            return seen.state.status, rows
        finally:
            await service.close()

    def describe(self, id_: UUID) -> dict[str, Any]:
        """For another process."""
        fault = None if self.fault is None else asdict(self.fault)
        return {"plan": self.plan, "fault": fault, "threads": self.threads, "id": str(id_)}


class _Plain:
    """A step's context as its plain twin has it."""

    def __init__(self, step: Any, session: Any) -> None:
        self.step, self.direction, self.data = step.step, step.direction, step.data
        self.session = session


def _add(name: str, cents: int) -> Any:
    return sa.update(account).where(account.c.name == name).values(cents=account.c.cents + cents)


def prepare(engine: sa.Engine) -> None:
    """Our tables and the accounts."""
    with engine.begin() as connection:
        upgrade(connection)
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(account).values(name="buyer", cents=BUYER))
        connection.execute(sa.insert(account), [{"name": step, "cents": 0} for step in STEPS])
