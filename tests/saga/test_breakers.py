"""Breakers: who is not called, for how long, and that one call at a time asks again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import (
    Breaker,
    Breakers,
    Decision,
    Failure,
    Retry,
    Saga,
    Service,
    StepContext,
    SyncStepContext,
    nothing_to_undo,
)
from outbox_saga.breaker import Gates, Stand, agreed, gates_of
from outbox_saga.errors import ConfigurationError, DefinitionError, SeenChanged
from outbox_saga.queries import breakers as rows
from outbox_saga.queries import sagas, sagas_seen
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.happened import Decision as Decided
from outbox_saga.saga.happened import Resumed, Surroundings
from outbox_saga.saga.progress import decide, initial
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

PSP = Breaker("psp", failures=2, seconds=60.0)
EACH_SECOND = Retry(max_attempts=12, initial=1.0, max_delay=1.0)
NOW = dt.datetime(2026, 11, 28, 12, tzinfo=dt.UTC)


class Order(BaseModel):
    receipt: str | None = None
    found: bool = False


class Payer:
    """Pays by a provider that may be down, whose breaker opens after two failures."""

    def __init__(self, url: str, *, threads: bool = False) -> None:
        self.url = url
        self.down = False
        self.refuses = False
        self.fails_behind = False
        self.goes_down = False
        self.calls: list[str] = []
        self.saga = self._saga(threads=threads, idempotent=True)
        self.asking = self._saga(threads=threads, idempotent=False)
        service = self.later(0)
        with service.database.begin() as connection:
            upgrade(connection)
        service.database.engine.dispose()

    def _saga(self, *, threads: bool, idempotent: bool) -> Saga[Order]:
        def call(step: StepContext[Order] | SyncStepContext[Order], what: str) -> Any:
            self.calls.append(what)
            if self.down:
                raise ConnectionError("no answer")
            return Failure("no money") if self.refuses else None

        def behind() -> Any:
            self.down = self.down or self.goes_down
            return Failure("out of stock") if self.fails_behind else None

        async def pay(step: StepContext[Order]) -> Any:
            return call(step, "pay")

        async def refund(step: StepContext[Order]) -> Any:
            return call(step, "refund")

        async def ask(step: StepContext[Order]) -> Any:
            call(step, "ask")

        async def send(_: StepContext[Order]) -> Any:
            return behind()

        def pay_now(step: SyncStepContext[Order]) -> Any:
            return call(step, "pay")

        def refund_now(step: SyncStepContext[Order]) -> Any:
            return call(step, "refund")

        def send_now(_: SyncStepContext[Order]) -> Any:
            return behind()

        return (
            Saga("pay" if idempotent else "ask", data=Order)
            .step(
                "pay",
                pay_now if threads else pay,
                compensation=refund_now if threads else refund,
                external=True,
                idempotent=idempotent,
                query=None if idempotent else ask,
                timeout=5,
                retry=EACH_SECOND,
                compensation_retry=EACH_SECOND,
                breaker=PSP,
            )
            .step("send", send_now if threads else send, compensation=nothing_to_undo)
            .check()
        )

    def later(self, seconds: float) -> Service:
        return Service(
            "payer",
            database=self.url,
            sagas=[self.saga, self.asking],
            clock=Clock(seconds),
            lease=1.0,
        )

    async def start(self, count: int = 1, *, saga: Saga[Order] | None = None) -> list[UUID]:
        service = self.later(0)
        ids = []
        for _ in range(count):
            async with service.unit_of_work() as uow:
                ids.append((saga or self.saga).start(uow, Order()))
        await service.close()
        return ids

    async def carry_on(self, after: float = 0.0) -> int:
        """As far as it goes by itself; how many calls that were."""
        before = len(self.calls)
        service = self.later(after)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        await service.close()
        return len(self.calls) - before

    async def look(self, after: float, question: Callable[..., Any], *told: Any) -> Any:
        service = self.later(after)
        try:
            return await service.database.look(question, service.database.tables, *told)
        finally:
            await service.close()

    async def state(self, id_: UUID) -> str:
        return str((await self.look(0, sagas.read, id_)).state.status)

    async def history(self, id_: UUID) -> list[str]:
        found = await self.look(0, sagas_seen.history, id_)
        return [
            f"{happening.entry.transition} {happening.entry.step or ''}".strip()
            for happening in found
        ]

    async def stand(self, after: float = 0.0) -> Stand:
        (found,) = await self.look(after, rows.read, Clock(after))
        assert isinstance(found, Stand)
        return found

    async def decide(self, decision: Decision, name: str = "psp") -> None:
        service = self.later(0)
        try:
            await Breakers(service.database).reset(name, decision)
        finally:
            await service.close()


@pytest.fixture(params=["async", "threads"])
async def payer(request: pytest.FixtureRequest, database: Database) -> Payer:
    return Payer(database.url, threads=request.param == "threads")


async def test_nobody_calls_while_it_is_open_and_then_one_call_asks(payer: Payer) -> None:
    ids = await payer.start(3)
    payer.down = True
    assert await payer.carry_on() in (2, 3)  # the third may have been under way, too
    stand = await payer.stand()
    assert (stand.state, stand.failures, stand.trips) == ("open", 2, 1)

    assert await payer.carry_on(after=5) == 0
    assert await payer.carry_on(after=55) == 0
    assert await payer.carry_on(after=80) == 1
    assert (await payer.stand(after=80)).trips == 2

    payer.down = False
    assert await payer.carry_on(after=100) == 0
    assert await payer.carry_on(after=160) >= 1  # whoever looks after its answer goes, too
    assert (await payer.stand(after=160)).state == "closed"
    await payer.carry_on(after=200)
    assert [await payer.state(id_) for id_ in ids] == ["completed"] * 3
    told = [entry for id_ in ids for entry in await payer.history(id_)]
    assert told.count("BREAKER_OPENED pay") == 2
    assert told.count("HELD_BACK pay") >= 3


async def test_what_is_held_back_uses_up_no_attempt(payer: Payer) -> None:
    (id_,) = await payer.start()
    payer.down = True
    calls = [await payer.carry_on(after) for after in (0, 2, 4, 20, 40, 75)]
    assert calls == [1, 1, 0, 0, 0, 1]
    instance = await payer.look(0, sagas.read, id_)
    assert instance.state.steps["pay"].attempts == 3


async def test_a_compensation_waits_for_its_breaker_and_is_done(payer: Payer) -> None:
    (id_,) = await payer.start()
    payer.fails_behind = payer.goes_down = True
    calls = [await payer.carry_on(after) for after in (0, 2, 4, 40)]
    assert calls == [2, 1, 0, 0]
    assert payer.calls == ["pay", "refund", "refund"]
    payer.down = False
    assert await payer.carry_on(after=75) == 1
    assert await payer.state(id_) == "compensated"
    told = await payer.history(id_)
    assert told.count("STEP_COMPENSATED pay") == 1
    assert "HELD_BACK pay" in told


async def test_a_question_waits_too(database: Database) -> None:
    payer = Payer(database.url)
    (id_,) = await payer.start(saga=payer.asking)
    payer.down = True
    assert await payer.carry_on() == 1
    # the question is not asked before the call can no longer be on its way
    assert await payer.carry_on(after=50) == 1
    assert payer.calls == ["pay", "ask"]
    assert (await payer.stand(after=50)).state == "open"
    assert await payer.carry_on(after=80) == 0
    payer.down = False
    assert await payer.carry_on(after=130) == 1
    # nothing was found, so it is called again
    assert await payer.carry_on(after=140) == 1
    assert payer.calls == ["pay", "ask", "ask", "pay"]
    assert await payer.state(id_) == "completed"


async def test_a_business_no_is_an_answer(payer: Payer) -> None:
    for _ in range(2):
        ids = await payer.start()
        payer.down = True
        await payer.carry_on()
        payer.down, payer.refuses = False, True
        await payer.carry_on(after=3)
        payer.refuses = False
        assert await payer.state(ids[0]) == "compensated"
        stand = await payer.stand()
        assert (stand.state, stand.failures, stand.trips) == ("closed", 0, 0)


async def test_a_probe_that_is_lost_lets_another_one_go_in_the_end(payer: Payer) -> None:
    await payer.start()
    payer.down = True
    assert [await payer.carry_on(after) for after in (0, 2)] == [1, 1]
    service = payer.later(80)
    database = service.database
    with database.begin() as connection:  # of a process that dies now
        assert rows.take_probe(connection, database.tables, database.clock, "psp", 30.0)
    await service.close()
    payer.down = False
    assert await payer.carry_on(after=85) == 0
    assert (await payer.stand(after=85)).probing
    assert await payer.carry_on(after=100) == 0
    assert await payer.carry_on(after=130) == 1
    assert (await payer.stand(after=130)).state == "closed"


def test_a_probe_is_one_transactions_and_given_back_if_that_does_not_commit(
    database: Database,
) -> None:
    service = Payer(database.url).later(0)
    engine = service.database.engine
    tables, clock = service.database.tables, service.database.clock

    def take(connection: sa.Connection) -> bool:
        return rows.take_probe(connection, tables, clock, "psp", 30.0)

    with service.database.begin() as connection:
        assert not take(connection)  # there is nothing to probe
        stand = rows.lock(connection, tables, clock, "psp")
        opened = stand.failed(Breaker("psp", failures=1, seconds=0.001))
        rows.note(connection, tables, clock, opened)
    with engine.connect() as connection:
        assert take(connection)
        connection.rollback()
        assert take(connection)
        connection.commit()
        assert not take(connection)
    engine.dispose()


async def test_an_operator_sees_it_and_closes_it_on_record(payer: Payer) -> None:
    (id_,) = await payer.start()
    with pytest.raises(SeenChanged, match="psp"):
        await payer.decide(Decision("ada", "the provider is back"))
    payer.down = True
    assert [await payer.carry_on(after) for after in (0, 2, 4)] == [1, 1, 0]
    payer.down = False
    await payer.decide(Decision("ada", "the provider is back"))
    stand = await payer.stand()
    assert (stand.state, stand.failures, stand.trips) == ("closed", 0, 1)
    assert await payer.carry_on(after=75) == 1
    assert await payer.state(id_) == "completed"
    service = payer.later(0)
    noted = service.database.tables.operator_action
    with service.database.begin() as connection:
        (row,) = connection.execute(sa.select(noted))
    await service.close()
    told = (row.operator, row.action, row.subject, row.reason)
    assert told == ("ada", "breaker.reset", "breaker psp", "the provider is back")


# --- without a database --------------------------------------------------------------------------


def test_failures_in_a_row_open_it_and_an_answer_closes_it() -> None:
    rule = Breaker("b", failures=3, seconds=60.0)
    stand = Stand("b", NOW).failed(rule).failed(rule)
    assert (stand.state, stand.failures) == ("closed", 2)
    assert stand.answered() == Stand("b", NOW)
    opened = stand.failed(rule)
    assert (opened.state, opened.trips, opened.opened_at) == ("open", 1, NOW)
    assert opened.failed(rule) == opened
    assert opened.answered() == opened  # of a call that began before
    assert opened.until is not None
    later = replace(opened, now=opened.until)
    assert later.state == "half-open"
    assert later.answered().state == "closed"
    again = later.failed(rule)
    assert (again.state, again.trips) == ("open", 2)


def test_one_call_goes_through_a_breaker_that_is_half_open() -> None:
    stand = Stand("psp", NOW, 2, NOW, None, 1, NOW)
    gates = gates_of([stand], {"psp": PSP})
    assert gates.held_until(PSP, [], NOW, "seed") is None
    held = gates.held_until(PSP, ["psp"], NOW, "seed")
    assert held is not None
    assert NOW < held <= NOW + dt.timedelta(seconds=12)


def test_a_saga_whose_deadline_passes_while_it_is_held_back_is_undone() -> None:
    definition = (
        Saga("late", data=Order, deadline=10)
        .step(
            "pay",
            _nothing,
            compensation=nothing_to_undo,
            external=True,
            idempotent=True,
            breaker=PSP,
        )
        .check()
    )
    state = initial(definition, {})

    def decided(after: float) -> Decided:
        now = NOW + dt.timedelta(seconds=after)
        shut = Gates({"psp": NOW + dt.timedelta(seconds=60)})
        around = Surroundings(now, seed="seed", started_at=NOW, gates=shut)
        return decide(definition, state, Resumed(), around)

    held = decided(0)
    state = held.state
    assert [entry.transition for entry in held.entries] == ["HELD_BACK"]
    assert held.due == NOW + dt.timedelta(seconds=10)
    assert decided(11).state.status == "compensated"


def test_those_that_were_held_back_do_not_come_all_at_once() -> None:
    gates = Gates({"psp": NOW})
    moments = {gates.held_until(PSP, [], NOW, f"saga {number}") for number in range(50)}
    assert len(moments) == 50
    assert all(m is not None and NOW <= m <= NOW + dt.timedelta(seconds=6) for m in moments)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"name": "a b"}, "is not a breaker's name"),
        ({"name": ""}, "is not a breaker's name"),
        ({"failures": 0}, "failures is 0"),
        ({"failures": True}, "failures is True"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": 1e12}, "seconds is 1000000000000"),  # a date that no database has
        ({"name": "n" * 202}, "is not a breaker's name"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Breaker(**told)


async def _nothing(_: StepContext[Order]) -> None: ...


def test_only_what_is_outside_has_a_breaker() -> None:
    saga = Saga("local", data=Order)
    with pytest.raises(DefinitionError, match="external=True"):
        saga.step("one", _nothing, compensation=nothing_to_undo, breaker="psp")
    with pytest.raises(DefinitionError, match="breaker= is a name"):
        saga.step(
            "two", _nothing, compensation=nothing_to_undo, external=True, idempotent=True,
            breaker=7,  # type: ignore[arg-type]
        )  # fmt: skip
    with pytest.raises(DefinitionError, match="not a breaker's name"):
        saga.step(
            "two", _nothing, compensation=nothing_to_undo, external=True, idempotent=True,
            breaker="a b",
        )  # fmt: skip


@pytest.mark.parametrize("name", ["_pay", "p" * 100])
def test_each_saga_and_step_may_have_a_breaker_of_its_own(name: str) -> None:
    saga = Saga(name, data=Order).step(
        name, _nothing, compensation=nothing_to_undo, external=True, idempotent=True, breaker=True
    )
    assert set(saga.check().breakers) == {f"{name}.{name}"}


def test_each_name_has_one_rule() -> None:
    def saga(name: str, *breakers: Breaker | str | bool) -> Saga[Order]:
        made = Saga(name, data=Order)
        for number, breaker in enumerate(breakers):
            made.step(
                f"s{number}", _nothing, compensation=nothing_to_undo, external=True,
                idempotent=True, breaker=breaker,
            )  # fmt: skip
        return made

    assert set(saga("a", True, Breaker(failures=2), "psp").check().breakers) == {
        "a.s0", "a.s1", "psp",
    }  # fmt: skip
    with pytest.raises(DefinitionError, match="'psp' is given twice"):
        saga("b", "psp", PSP).check()
    with pytest.raises(ConfigurationError, match="'psp' is given twice"):
        agreed([PSP, Breaker("psp")])
    service = Service("payer", database="sqlite://", sagas=[saga("a", "psp"), saga("c", PSP)])
    with pytest.raises(ConfigurationError, match="'psp' is given twice"):
        service.orchestrator()
