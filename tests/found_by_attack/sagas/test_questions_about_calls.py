"""A query is asked what came of a call: what its answers say, and when it may be asked."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from outbox_saga import Event, Failure, Retry, Saga, Service, Success, calling
from outbox_saga.calling import begin_in_thread
from outbox_saga.ids import new_id
from outbox_saga.queries import relay
from outbox_saga.queries.clock import Clock
from outbox_saga.saga import execution
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Call, Query, Resumed
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.worker_threads import WorkerThreads
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database


class Order(BaseModel):
    receipt: str | None = None


async def act(_: Any) -> None: ...


async def carried_on(service: Service) -> None:
    orchestrator = service.orchestrator()
    while await orchestrator.run_once():
        pass
    orchestrator.close()


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("answer", "calls"),
    [(Success(), 1), ({}, 1), (Success({"receipt": "r"}), 1), (None, 2), (Failure("eh?"), 1)],
    ids=["success", "mapping", "receipt", "none", "failure"],
)
async def test_only_none_says_that_the_call_was_not_carried_out(
    database: Database, answer: Any, calls: int
) -> None:
    called: list[int] = []

    async def charge(step: Any) -> None:
        called.append(step.attempt)
        if len(called) == 1:
            raise ConnectionError("reset after the request")

    async def find(_: Any) -> Any:
        return answer

    quick = Retry(max_attempts=3, initial=0.01)
    saga = Saga("s", data=Order).step(
        "charge", charge, compensation=act, external=True, query=find, timeout=1, retry=quick
    )
    service = Service("s", database=database.url, sagas=[saga])
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order())
    await carried_on(service)
    for hours in (1, 2):
        later = Service("s", database=database.url, sagas=[saga], clock=Clock(3600.0 * hours))
        await carried_on(later)
        await later.close()
    seen, _ = await SagaOperations(service.database).show(id_)
    await service.close()
    asked_on = isinstance(answer, Failure)
    assert (len(called), seen.state.status) == (calls, "running" if asked_on else "completed")
    if asked_on:
        assert "answer None" in str(seen.state.steps["charge"].error)


@pytest.mark.databases("sqlite")
async def test_a_call_does_not_begin_so_late_that_it_would_be_asked_about_while_it_is_made(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the thread had been waited for, with the lease renewed meanwhile."""
    called: list[int] = []

    def charge(step: Any) -> None:
        called.append(step.attempt)

    saga = Saga("s", data=Order).step(
        "charge", charge, compensation=act, external=True, query=act, timeout=2,
        retry=Retry(max_attempts=3, initial=0.01),
    )  # fmt: skip
    service = Service("s", database=database.url, sagas=[saga])
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order())
    begin = begin_in_thread

    async def waited_for(threads: Any, work: Any, seconds: float) -> Any:
        def late() -> Any:
            reading = Hand.surroundings
            with monkeypatch.context() as patch:
                patch.setattr(
                    Hand, "surroundings", lambda hand, flight: _later(reading(hand, flight))
                )
                return work()

        return await begin(threads, late, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "begin_in_thread", waited_for)
        orchestrator = service.orchestrator()
        await orchestrator.run_once()
        orchestrator.close()
    assert called == []
    seen, history = await SagaOperations(service.database).show(id_)
    assert any("no thread was free in time" in str(h.entry.detail) for h in history)
    assert not seen.state.steps["charge"].unknown

    later = Service("s", database=database.url, sagas=[saga], clock=Clock(3600.0))
    await carried_on(later)
    seen, _ = await SagaOperations(service.database).show(id_)
    await later.close()
    await service.close()
    assert (called, seen.state.status) == ([2], "completed")


def _later(around: Any) -> Any:
    return replace(around, now=around.now + dt.timedelta(seconds=31))


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(("generation", "asked"), [(0, 0), (1, 1)], ids=["its own", "another"])
async def test_what_a_late_call_says_is_about_its_own_key_only(
    database: Database, generation: int, asked: int
) -> None:
    questions: list[str] = []

    async def find(step: Any) -> None:
        questions.append(step.key)

    saga = Saga("s", data=Order).step("charge", act, compensation=act, external=True, query=find)
    service = Service("s", database=database.url, sagas=[saga])
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order())
    seen, _ = await SagaOperations(service.database).show(id_)
    threads = WorkerThreads(1, "late")
    execution_ = execution.Execution(service.database, threads)
    hand = Hand(saga, seen, new_id(), dt.datetime.now(dt.UTC), time.monotonic(), 30.0)
    (call,) = (await execution_.resume(hand, Resumed())).todo
    assert isinstance(call, Call)
    late: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    late.set_result({"receipt": "of the first key"})
    execution_._keep_late(hand, call, late, [])

    again = hand.instance.state.with_step("charge", generation=generation)
    hand.instance = replace(hand.instance, state=again)
    decision = await execution_.carry_out(hand, Query("charge", 1))
    threads.shutdown()
    await service.close()
    assert len(questions) == asked
    assert (decision.state.status == "completed") == (generation == 0)


class Charged(Event, topic="charges"):
    n: int = 1


@pytest.mark.databases("sqlite", "postgres18")
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_a_call_published_leaves_though_it_ended_after_its_time(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(calling, "STUBBORN", 0.02)
    let_go, released, asked = threading.Event(), asyncio.Event(), []

    def charge(step: Any) -> Any:
        step.publish(Charged())
        assert let_go.wait(20)
        return {"receipt": "r"}

    async def charge_in_task(step: Any) -> Any:
        step.publish(Charged())
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()
        return {"receipt": "r"}

    def find(step: Any) -> None:
        asked.append(step.key)

    saga = Saga("s", data=Order).step(
        "charge", charge if kind == "def" else charge_in_task,
        compensation=act, external=True, query=find, timeout=0.1,
    )  # fmt: skip
    service = Service("s", database=database.url, sagas=[saga])
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order())
    orchestrator = service.orchestrator()
    await orchestrator.run_once()
    let_go.set()
    released.set()
    for hours in (1, 2, 3):
        service.database.clock = Clock(3600.0 * hours)
        await orchestrator.run_once()
    orchestrator.close()
    seen, _ = await SagaOperations(service.database).show(id_)
    pending = await service.database.look(relay.pending, service.database.tables)
    await service.close()
    assert (seen.state.status, seen.state.data["receipt"], asked) == ("completed", "r", [])
    assert pending == 1


@pytest.mark.databases("sqlite")
async def test_what_a_query_publishes_leaves_if_the_call_was_carried_out(
    database: Database,
) -> None:
    async def charge(step: Any) -> None:
        step.publish(Charged())
        raise ConnectionError("reset after the request")

    async def find(step: Any) -> Success[Any]:
        step.publish(Charged())
        return Success()

    saga = Saga("s", data=Order).step(
        "charge", charge, compensation=act, external=True, query=find, timeout=1
    )
    service = Service("s", database=database.url, sagas=[saga])
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        saga.start(uow, Order())
    await carried_on(service)
    service.database.clock = Clock(3600.0)
    await carried_on(service)
    pending = await service.database.look(relay.pending, service.database.tables)
    await service.close()
    assert pending == 1
