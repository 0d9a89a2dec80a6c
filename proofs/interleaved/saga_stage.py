"""One PostgreSQL database with one saga in it, and those who may move it at the same moment.

Orchestrators, answers, events and operators are the product's own code. Each actor has an event
loop of its own in its own thread, whose database verbs run in that very thread, so that every
statement is a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Command, Event, Retry, Saga, StepContext
from outbox_saga.commanding import Answer, Asked
from outbox_saga.database import Database
from outbox_saga.decisions import Decision
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import ActionRefused, LeaseLost, SeenChanged
from outbox_saga.ids import saga_id
from outbox_saga.instances import OVER_FOR_GOOD, Instance
from outbox_saga.queries import sagas
from outbox_saga.saga.arrivals import Arrival, Arrivals
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Resumed, ToDo
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.saga.remote import Answers
from outbox_saga.testing import invariants
from outbox_saga.testing.interleaving import Play, Point, Reach, Run, boundary
from outbox_saga.testing.invariants import HistoryRow, SagaRow
from outbox_saga.testing.servers import Postgres18, choose
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from proofs.interleaved import clock
from proofs.interleaved.reach import Reaches

SOURCE, NAME, KEY = "orders", "play", "order:7"
ANSWER_IN = 1_000.0  # seconds
LEASE = 31.0  # as long as the longest step, and a second
TAKEN_OVER, UNANSWERED = LEASE + 10.0, ANSWER_IN + 100.0
ADA = Decision("ada", "the interleavings")
ROUNDS = 40


class Ship(Command, topic="shipping"):
    """What another service does."""

    order: int


class CancelShip(Command, topic="shipping"):
    """What undoes it."""

    order: int


class Paid(Event, topic="payments"):
    """What the saga waits for in the end."""

    order: int


class Order(BaseModel):
    """The saga's data."""

    order: int = 7
    paid: bool = False


class InThread(Database):
    """Its verbs run in the thread that awaits them."""

    async def run(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """As of a Database."""
        with self.begin() as connection:
            return verb(connection, *args, **options)

    async def look(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """As of a Database."""
        with self.begin() as connection:
            return verb(connection, *args, **options)


class SagaReaches(Reaches):
    """Of statements about sagas."""

    tables = ("saga", "saga_history", "outbox", "operator_action", "breaker", "delayed")

    def __call__(self, point: Point) -> Reach | None:
        """As of all others; a call outside changes what is there."""
        if point.kind == "effect":
            return Reach(changes=frozenset({"the other side"}), frees=False)
        return super().__call__(point)


@dataclass
class Others:
    """The other side of the calls, and the service that is commanded.

    Args:
        acted: Of each key, whether it acted.
        shipped: What the command did, once it came.
        cancelled: Its undoing has come.
    """

    acted: dict[str, str] = field(default_factory=dict)
    shipped: bool = False
    cancelled: bool = False
    shipments: int = 0

    def net(self, step: str) -> int:
        """Effects of a step that are there."""
        told = list(self.acted.values())
        return told.count(f"do {step}") - told.count(f"undo {step}")


class SagaStage:
    """The database, its clock, and who works with the one saga in one run."""

    def __init__(self, url: str) -> None:
        self.database = InThread(url, clock=clock.PlayClock(), hints=False)
        with self.database.begin() as connection:
            upgrade(connection)
            clock.create(connection)
        self.engines = [self.database.engine]
        self.tables = self.database.tables
        self.id = saga_id(SOURCE, NAME, KEY)
        self.saga = self._saga()
        self.reaches = SagaReaches()
        self.others = Others()
        self.cancels: list[str] = []
        self.event_came = False
        self._orchestrators: list[Orchestrator] = []
        self._first: Orchestrator
        self._hand: Hand
        self._call: ToDo

    def _saga(self) -> Saga[Order]:
        async def act(step: StepContext[Order]) -> None:
            boundary(f"{step.direction} {step.step}")
            self.others.acted.setdefault(step.key, f"{step.direction} {step.step}")

        once: dict[str, Any] = {"external": True, "idempotent": True, "compensation": act}
        saga = Saga(NAME, data=Order)
        saga.step(
            "ship",
            Ship,
            compensation=CancelShip,
            timeout=ANSWER_IN,
            retry=Retry(max_attempts=1),
            after=(),
            writes=(),
        )
        saga.step("branch", act, after=(), writes=(), **once)
        saga.wait_for(
            "paid",
            Paid,
            timeout=1e7,
            take=lambda _: {"paid": True},
            business_key=lambda paid: f"order:{paid.order}",
            after=("ship", "branch"),
        )
        return saga.step("end", act, **once).check()

    # --- before a run ----------------------------------------------------------------------------

    def fresh(self, *, branch_done: bool) -> None:
        """A saga whose command has left and was carried out.

        Args:
            branch_done: What is beside it, too; otherwise it is about to be called, by the first
                orchestrator.
        """
        for orchestrator in self._orchestrators:
            orchestrator.close()
        self._orchestrators, self.cancels, self.event_came = [], [], False
        self.others = Others()
        clock.advance(self.database.engine, None)
        t = self.tables
        with self.database.begin() as connection:
            for table in (t.outbox, t.saga, t.saga_history, t.operator_action):
                connection.execute(sa.delete(table))
        with self.database.engine.connect() as connection, connection.begin() as transaction:
            self.saga.start(UnitOfWork(connection, source=SOURCE), Order(), business_key=KEY)
            transaction.commit()
        self._first = self.orchestrator()
        asyncio.run(self._first.run_once() if branch_done else self._begins(self._first))
        self._participate()

    async def _begins(self, orchestrator: Orchestrator) -> None:
        """The intents of both steps are committed."""
        drives = await orchestrator._claim(1)
        (self._hand,) = orchestrator._hands.values()
        for drive in drives:
            drive.cancel()
        await asyncio.gather(*drives, return_exceptions=True)
        decision = await orchestrator._carrying._execution.resume(self._hand, Resumed())
        (self._call,) = decision.todo
        self._hand.begins(self._call)

    # --- actors ----------------------------------------------------------------------------------

    def orchestrator(self) -> Orchestrator:
        """Of a process of its own."""
        made = Orchestrator(self.database, [self.saga], lease=LEASE)
        made._checked = True
        made._parking._next = float("inf")  # nobody is of another shape
        self._orchestrators.append(made)
        return made

    def goes_on(self, later: float = 0.0) -> Callable[[], None]:
        """An orchestrator looks once for what is due, so many seconds later."""
        orchestrator = self.orchestrator()

        def work() -> None:
            if later:
                clock.advance(self.database.engine, later)
            asyncio.run(orchestrator.run_once())

        return work

    def branch(self) -> None:
        """The first orchestrator makes the call that it has begun, and reports what came of it."""
        with contextlib.suppress(LeaseLost):
            asyncio.run(self._first._carrying._execution.carry_out(self._hand, self._call))

    def reply(self) -> None:
        """The answer to the command is taken in."""
        answers = Answers(self.database, SOURCE, [self.saga])
        answer = Answer(
            saga=self.id, step="ship", direction="do", generation=0, attempt=1, done=True
        )
        with self.database.begin() as connection:
            answers._move(connection, answer)

    def event(self) -> None:
        """The event comes."""
        arrivals = Arrivals(self.database, SOURCE, [self.saga])
        paid = Paid(order=7)
        with self.database.begin() as connection:
            arrivals._arrive(connection, Arrival(NAME, "paid", paid, seal(paid)))
        self.event_came = True

    def cancel(self) -> None:
        """A person looks, cancels, and looks again if it has moved meanwhile."""
        operations = SagaOperations(self.database, [self.saga])
        while True:
            seen = self.instance()
            try:
                asyncio.run(operations.cancel(seen, ADA))
            except SeenChanged:
                continue
            except ActionRefused as refused:
                self.cancels.append(str(refused))
                return
            self.cancels.append("")
            return

    def instance(self) -> Instance:
        """As it is."""
        with self.database.begin() as connection:
            found = sagas.read(connection, self.tables, self.id)
        assert found is not None
        return found

    # --- the end ---------------------------------------------------------------------------------

    def play(self, **actors: Callable[[], object]) -> Play:
        """These actors, after which one orchestrator goes on alone and everything is looked at."""

        def check(run: Run) -> str | None:
            if run.errors or run.deadlock:
                return f"errors: {run.errors}"
            if not {"reply", "timeout"}.intersection(actors):
                self.reply()  # at last
            self._to_the_end()
            return self._what_is_wrong(set(actors))

        self.reaches.begin({name: {str(self.id)} for name in actors})
        return Play(actors, check)

    def _to_the_end(self) -> None:
        last = self.orchestrator()
        for _ in range(ROUNDS):
            seen = self.instance()
            if seen.state.status in OVER_FOR_GOOD:
                return
            while asyncio.run(last.run_once()):
                pass
            self._participate()
            if seen.state.steps["paid"].phase == "listening" and not self.event_came:
                self.event()
            clock.advance(self.database.engine, TAKEN_OVER)

    def _participate(self) -> None:
        """The other service gets what has left, and its answers come; that of `ship` is held."""
        outbox = self.tables.outbox
        with self.database.begin() as connection:
            rows = connection.execute(sa.select(outbox).order_by(outbox.c.position)).all()
            connection.execute(sa.delete(outbox))
        answers = Answers(self.database, SOURCE, [self.saga])
        for row in rows:
            envelope = Envelope.from_row(row.id, row.topic, row.key, row.headers, row.body)
            asked = Asked.of(envelope)
            assert asked is not None
            done = True
            if asked.direction == "undo":
                self.others.shipped, self.others.cancelled = False, True
            elif self.others.cancelled:
                done = False
            else:
                self.others.shipments += not self.others.shipped
                self.others.shipped = True
                continue  # the answer is an actor's, or was lost
            with self.database.begin() as connection:
                answers._move(connection, Answer.to(asked, done=done))

    def _what_is_wrong(self, actors: set[str]) -> str | None:
        seen = self.instance()
        status, others = seen.state.status, self.others
        told = (
            f"{status}: shipped {others.shipped}, branch {others.net('branch')}, "
            f"end {others.net('end')}, paid {seen.state.data['paid']}, cancels {self.cancels}"
        )
        allowed = {
            "completed": (True, 1, 1, True, 1),
            "compensated": (False, 0, 0, seen.state.data["paid"], others.shipments),
        }
        found = (
            others.shipped,
            others.net("branch"),
            others.net("end"),
            seen.state.data["paid"],
            others.shipments,
        )
        if found != allowed.get(status):
            return told
        if status == "compensated" and not actors & {"timeout", "cancel"}:
            return f"nobody has turned it back; {told}"
        if "" in self.cancels and status != "compensated":
            return f"it was cancelled; {told}"
        return self._history(seen)

    def _history(self, seen: Instance) -> str | None:
        history = self.tables.saga_history
        with self.database.begin() as connection:
            rows = connection.execute(sa.select(history).order_by(history.c.number)).all()
            progress = json.loads(
                connection.execute(sa.select(self.tables.saga.c.progress)).scalar_one()
            )
        phases = {name: step["phase"] for name, step in progress["steps"].items()}
        row = SagaRow(str(self.id), NAME, seen.state.status, seen.revision, phases)
        entries = [
            HistoryRow(
                str(self.id), r.number, r.revision, r.transition, r.step, r.attempt, r.detail
            )
            for r in rows
        ]
        found = invariants.histories([row], entries)
        undone = [e.step for e in entries if e.transition == "STEP_COMPENSATED"]
        if len(undone) != len(set(undone)):
            return f"undone twice: {undone}"
        cancelled = sum("cancelled by" in (e.detail or "") for e in entries) > 0
        if cancelled != ("" in self.cancels):
            return f"cancels {self.cancels}, by the history {cancelled}"
        return "; ".join(map(str, found)) or None


@contextmanager
def saga_stage() -> Iterator[SagaStage]:
    """On a private PostgreSQL."""
    with choose(Postgres18) as server:
        server.execute("alter system set autovacuum = off")
        server.execute("select pg_reload_conf()")
        there = SagaStage(server.create_database())
        try:
            yield there
        finally:
            there.database.dispose()


__all__: Sequence[str] = ["SagaStage", "saga_stage"]
