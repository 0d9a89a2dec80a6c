"""Sagas on real databases: completed or undone, whatever a step answers and whoever takes over."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import NotDone
from outbox_saga.errors import LeaseLost, MessageRefused, NoTransaction, SagaStartConflict
from outbox_saga.ids import new_id
from outbox_saga.queries import leases, sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.leases import Known
from outbox_saga.saga.execution import Execution
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Call, Resumed, Run
from tests.saga.shop import Order, Reserved, Shop, refuse, stock

pytestmark = pytest.mark.anyio


async def test_a_saga_runs_to_its_end_and_its_history_reads_like_it(shop: Shop) -> None:
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert ended.state.status == "completed"
    assert ended.state.data == {
        "order_id": 1,
        "quantity": 1,
        "charge": shop.provider.requests[0][1],
        "booked": True,
    }
    assert await shop.history(id_) == [
        "STARTED",
        "STEP_COMPLETED reserve",
        "RUNNING charge",
        "STEP_COMPLETED charge",
        "STEP_COMPLETED book",
        "COMPLETED",
    ]
    assert await shop.shelf() == (99, 1)
    assert await shop.published() == 1


@pytest.mark.parametrize("step", ["reserve", "charge"])
async def test_what_a_step_publishes_with_a_delay_waits_for_its_time(
    shop: Shop, step: str
) -> None:
    """A local step's in its own transaction, an external one's in that of its outcome."""
    before = await shop.published()

    def remind(context: Any) -> None:
        context.publish(Reserved(order_id=7), key="tea", delay=3600)
        context.publish(Reserved(order_id=8), key="tea", delay=None)
        with pytest.raises(MessageRefused, match="delay"):
            context.publish(Reserved(order_id=9), delay=-1)

    shop.hooks[step] = remind
    id_ = await shop.start()
    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "completed"
    assert await shop.published() == before + 2  # the step's own, and the one without a delay
    database = shop.service.database
    (delayed,) = await database.look(lambda c: c.execute(sa.select(database.tables.delayed)).all())
    assert json.loads(delayed.body) == {"order_id": 7}
    headers = json.loads(delayed.headers)
    assert headers["correlation_id"] == str(id_)


async def test_a_business_no_undoes_what_was_done_in_reverse(shop: Shop) -> None:
    shop.hooks["book"] = refuse("closed on Sundays")
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert (ended.state.status, ended.state.reason) == ("compensated", "book: closed on Sundays")
    assert await shop.history(id_) == [
        "STARTED",
        "STEP_COMPLETED reserve",
        "RUNNING charge",
        "STEP_COMPLETED charge",
        "STEP_FAILED book",
        "COMPENSATION_STARTED",
        "COMPENSATING_STEP charge",
        "STEP_COMPENSATED charge",
        "STEP_COMPENSATED reserve",
        "COMPENSATED",
    ]
    assert await shop.shelf() == (100, 0)
    assert (shop.provider.count("charge"), shop.provider.count("refund")) == (1, 1)


async def test_half_a_step_that_says_no_leaves_nothing_behind(shop: Shop) -> None:
    shop.hooks["reserve"] = refuse("out of stock")
    id_ = await shop.start()

    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "compensated"
    assert await shop.shelf() == (100, 0)
    assert await shop.published() == 0
    assert shop.provider.requests == []


async def test_exceptions_are_retried_within_the_policy_and_then_undone(shop: Shop) -> None:
    attempts: list[int] = []

    def fails(step: Any) -> None:
        attempts.append(step.attempt)
        raise RuntimeError("no luck")

    shop.hooks["reserve"] = fails
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert attempts == [1, 2, 3]
    assert ended.state.reason == "reserve: gave up after 3 attempts: RuntimeError: no luck"
    assert ended.state.status == "compensated"
    assert await shop.shelf() == (100, 0)


async def test_an_error_text_that_no_database_takes_does_not_hold_the_saga_up(shop: Shop) -> None:
    shop.hooks["reserve"] = refuse("bad\x00 and \ud800")
    id_ = await shop.start()

    await shop.to_the_end()

    assert (await shop.instance(id_)).state.reason == "reserve: bad\ufffd and ?"


async def test_an_exception_that_passes_costs_an_attempt_and_nothing_else(shop: Shop) -> None:
    def fails_once(step: Any) -> None:
        if step.attempt == 1:
            raise RuntimeError("no luck")

    shop.hooks["reserve"] = fails_once
    id_ = await shop.start()

    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "completed"
    assert await shop.shelf() == (99, 1)
    assert await shop.published() == 1


async def test_an_unknown_outcome_is_repeated_under_the_same_key_with_the_same_input(
    shop: Shop,
) -> None:
    inputs: list[Any] = []

    def loses_the_answer_twice(step: Any) -> None:
        inputs.append(step.data)
        if step.attempt < 3:
            raise ConnectionError("reset by peer")

    shop.hooks["charge"] = loses_the_answer_twice
    id_ = await shop.start()

    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "completed"
    assert len({key for _, key, _ in shop.provider.requests}) == 1
    assert [attempt for _, _, attempt in shop.provider.requests] == [1, 2, 3]
    assert inputs[0] == inputs[1] == inputs[2]


async def test_a_request_that_certainly_never_left_is_undone_without_a_settlement(
    shop: Shop,
) -> None:
    def never_leaves(step: Any) -> None:
        shop.provider.acted.clear()
        raise NotDone("connection refused")

    shop.hooks["charge"] = never_leaves
    id_ = await shop.start()

    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "compensated"
    assert shop.provider.count("refund") == 0
    assert await shop.shelf() == (100, 0)


async def test_a_compensation_that_never_succeeds_ends_stuck_with_the_reason(shop: Shop) -> None:
    shop.hooks["book"] = refuse("closed")

    def fails(step: Any) -> None:
        raise RuntimeError("warehouse on fire")

    shop.hooks["undo reserve"] = fails
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert ended.state.status == "stuck"
    assert ended.state.reason == (
        "reserve: gave up after 3 attempts: RuntimeError: warehouse on fire"
    )
    assert (await shop.history(id_))[-1] == "FAILED"
    assert shop.provider.count("refund") == 1


async def test_a_step_that_returns_what_does_not_fit_is_undone(shop: Shop) -> None:
    shop.hooks["charge"] = lambda _: {"chrage": "a typo"}
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert ended.state.status == "compensated"
    assert ended.state.reason == "charge: its answer does not fit the saga's data ($.chrage)"
    assert shop.provider.count("refund") == 1


async def test_a_step_that_ends_the_transaction_itself_fails_and_leaves_nothing(
    shop: Shop,
) -> None:
    def commits(step: Any) -> Any:
        return step.session.commit()

    shop.hooks["reserve"] = commits
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert ended.state.status == "compensated"
    assert "CommitRefused" in (ended.state.reason or "")
    assert await shop.shelf() == (100, 0)


async def test_a_step_that_answers_with_a_coroutine_nobody_ran_has_failed_and_done_nothing(
    shop: Shop,
) -> None:
    async def forgotten() -> None:
        raise AssertionError("nobody runs this")

    # plain `def` code that makes a coroutine, as a lambda around an `async def` does
    object.__setattr__(shop.saga.steps["book"], "action", lambda context: forgotten())
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert ended.state.status == "compensated"
    assert "make the action `async def`" in (ended.state.reason or "")
    assert await shop.shelf() == (100, 0)


async def test_a_cancellation_from_inside_a_step_is_a_failed_attempt(shop: Shop) -> None:
    async def awaits_what_somebody_cancelled(step: Any) -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    shop.hooks["charge"] = awaits_what_somebody_cancelled
    id_ = await shop.start()
    orchestrator = shop.service.orchestrator()
    await orchestrator.run_once()
    orchestrator.close()

    assert "STEP_FAILED charge" in await shop.history(id_)


async def test_a_step_that_exits_is_a_failed_attempt_and_not_the_end_of_the_process(
    shop: Shop,
) -> None:
    def exits(step: Any) -> None:
        raise SystemExit(3)

    shop.hooks["reserve"] = exits
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert ended.state.status == "compensated"
    assert "Misbehaved" in (ended.state.reason or "")


async def test_an_effect_that_comes_too_late_to_count_is_rolled_back(shop: Shop) -> None:
    id_ = await shop.start()
    database = shop.service.database
    owner = new_id()
    now, claimed = await database.run(
        leases.claim, database.tables, database.clock, owner, 60.0, Known(["fulfil"]), 10
    )
    hand = Hand(shop.saga, claimed[0], owner, now, 0.0, 60.0)
    orchestrator = shop.service.orchestrator()
    execution = Execution(database, orchestrator._threads)
    await execution.carry_out(hand, Run("reserve", "do", 1))

    await execution.carry_out(hand, Run("reserve", "do", 1))

    orchestrator.close()
    assert await shop.shelf() == (99, 1)
    assert await shop.published() == 1
    assert "IGNORED reserve" in await shop.history(id_)


async def test_starting_twice_with_one_business_key_is_one_instance(shop: Shop) -> None:
    first = await shop.start(7)
    second = await shop.start(7)

    assert first == second
    assert await shop.history(first) == ["STARTED"]
    with pytest.raises(SagaStartConflict, match="other data"):
        await shop.start(7, quantity=2)
    await shop.to_the_end()
    assert await shop.start(7) == first
    assert (await shop.instance(first)).state.status == "completed"


async def test_a_rolled_back_transaction_starts_nothing(shop: Shop) -> None:
    unit = shop.service.unit_of_work()
    uow = await unit.__aenter__()
    id_ = shop.saga.start(uow, Order(order_id=1))
    await unit.__aexit__(RuntimeError, RuntimeError("undo it"), None)

    found = await shop.service.database.look(sagas.read, shop.service.database.tables, id_)
    assert found is None
    with pytest.raises(NoTransaction):
        shop.saga.start(shop.service.work_in(uow.session), Order(order_id=1))


async def test_an_instance_whose_process_died_is_taken_over_after_its_lease(shop: Shop) -> None:
    id_ = await shop.start()
    database = shop.service.database
    dead = new_id()
    _, claimed = await database.run(
        leases.claim, database.tables, database.clock, dead, 30.0, Known(["fulfil"]), 10
    )
    assert [instance.id for instance in claimed] == [id_]

    orchestrator = shop.service.orchestrator()
    assert await orchestrator.run_once() == 0
    orchestrator.close()
    later = shop.restarted(Clock(shift=31.0))
    await shop.to_the_end(later)
    await later.close()

    assert (await shop.instance(id_)).state.status == "completed"
    assert await shop.shelf() == (99, 1)


async def test_a_process_whose_lease_was_taken_over_commits_nothing(shop: Shop) -> None:
    id_ = await shop.start()
    database = shop.service.database
    owner = new_id()
    now, claimed = await database.run(
        leases.claim, database.tables, database.clock, owner, 1.0, Known(["fulfil"]), 10
    )
    hand = Hand(shop.saga, claimed[0], owner, now, 0.0, 1.0)
    orchestrator = shop.service.orchestrator()
    execution = Execution(database, orchestrator._threads)
    await execution.resume(hand, Resumed())
    later = shop.restarted(Clock(shift=60.0))
    await shop.to_the_end(later)
    before = await shop.history(id_)

    with pytest.raises(LeaseLost):
        await execution.carry_out(hand, Run("reserve", "do", 1))

    orchestrator.close()
    await later.close()
    assert await shop.history(id_) == before
    assert await shop.shelf() == (99, 1)
    assert await shop.published() == 1


async def test_an_external_call_of_a_dead_process_is_repeated_under_its_key(shop: Shop) -> None:
    id_ = await shop.start()
    asked = asyncio.Event()

    async def never_answers(step: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    shop.hooks["charge"] = never_answers
    running = asyncio.create_task(shop.service.orchestrate(asyncio.Event()))
    await asyncio.wait_for(asked.wait(), 20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    shop.hooks.clear()
    later = shop.restarted(Clock(shift=60.0))
    await shop.to_the_end(later)
    await later.close()

    assert (await shop.instance(id_)).state.status == "completed"
    assert len({key for _, key, _ in shop.provider.requests}) == 1
    assert shop.provider.count("charge") == 1


@pytest.mark.databases("sqlite", "postgres18", "mariadb")
async def test_a_step_that_takes_too_long_is_rolled_back_and_tried_again(shop: Shop) -> None:
    released = threading.Event()
    waited = asyncio.Event()

    def hangs(step: Any) -> Any:
        if step.attempt > 1:
            return None
        if hasattr(step.session, "sync_session"):
            return waited.wait()
        released.wait(20)
        return None

    shop.hooks["reserve"] = hangs
    id_ = await shop.start()
    orchestrator = shop.service.orchestrator()
    try:
        first = asyncio.create_task(orchestrator.run_once())
        # the thread's own transaction holds the row until it ends, as a stuck step's would
        while "STEP_FAILED reserve" not in await shop.history(id_):
            if shop.url.startswith("sqlite"):
                # one writer a file: the transition itself waits for the stuck step
                asyncio.get_running_loop().call_later(3, released.set)
            await asyncio.wait({first}, timeout=0.1)
        released.set()
        await first
    finally:
        released.set()
        orchestrator.close()
    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "completed"
    assert await shop.shelf() == (99, 1)
    assert await shop.published() == 1


async def test_two_orchestrators_share_the_work_and_no_step_runs_twice(shop: Shop) -> None:
    for order_id in range(12):
        await shop.start(order_id)
    other = shop.restarted()
    stop = asyncio.Event()
    programs = [asyncio.create_task(s.orchestrate(stop)) for s in (shop.service, other)]

    async with asyncio.timeout(60):
        while await shop.service.database.look(sagas.unfinished, shop.service.database.tables):
            await asyncio.wait(programs, timeout=0.05)
    stop.set()
    await asyncio.gather(*programs)
    await other.close()

    assert await shop.shelf() == (88, 12)
    assert shop.provider.count("charge") == 12
    assert len(shop.provider.requests) == 12


async def test_stopping_hands_everything_back(shop: Shop) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def waits(step: Any) -> None:
        asked.set()
        await answer.wait()

    shop.hooks["charge"] = waits
    await shop.start()
    stop = asyncio.Event()
    running = asyncio.create_task(shop.service.orchestrate(stop))
    await asyncio.wait_for(asked.wait(), 20)
    stop.set()
    answer.set()
    await asyncio.wait_for(running, 20)

    table = shop.service.database.tables.saga
    with shop.service.database.begin() as connection:
        row = connection.execute(sa.select(table.c.owner, table.c.lease_until)).one()
        assert tuple(row) == (None, None)
        assert connection.execute(sa.select(stock.c.reserved)).scalar_one() == 1


async def test_a_process_that_stood_still_before_its_call_makes_no_call(shop: Shop) -> None:
    """Its lease has run out since the intent was committed: whoever has it now makes the call."""
    id_ = await shop.start()
    database = shop.service.database
    owner = new_id()
    now, claimed = await database.run(
        leases.claim, database.tables, database.clock, owner, 60.0, Known(["fulfil"]), 10
    )
    hand = Hand(shop.saga, claimed[0], owner, now, time.monotonic(), 60.0)
    orchestrator = shop.service.orchestrator()
    execution = Execution(database, orchestrator._threads)
    await execution.carry_out(hand, Run("reserve", "do", 1))
    hand.lease_ends = 0.0  # as its own clock would say when it goes on

    with pytest.raises(LeaseLost, match="before the call"):
        await execution.carry_out(hand, Call("charge", "do", 1))

    orchestrator.close()
    assert shop.provider.requests == []
    later = shop.restarted(Clock(shift=61.0))
    await shop.to_the_end(later)
    await later.close()
    assert (await shop.instance(id_)).state.status == "completed"


async def test_a_renewed_lease_lasts_longer_in_memory_too_and_a_lost_one_does_not(
    shop: Shop,
) -> None:
    await shop.start(1)
    await shop.start(2)
    database = shop.service.database
    owner = new_id()
    _, claimed = await database.run(
        leases.claim, database.tables, database.clock, owner, 60.0, Known(["fulfil"]), 10
    )
    ours, lost = (instance.id for instance in claimed)
    table = database.tables.saga
    with database.begin() as connection:
        connection.execute(sa.update(table).where(table.c.id == lost).values(owner=new_id()))

    kept = await database.run(
        leases.renew, database.tables, database.clock, owner, [ours, lost], 60.0
    )

    assert kept == {ours}
