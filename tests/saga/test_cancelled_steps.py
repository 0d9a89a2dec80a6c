"""Steps that end as only a cancellation, or the end of a process, does: an error like any other.

What a plain function waits for may be cancelled by others; `Future.result()` raises that, and so
does `asyncio.run()`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import pytest

from outbox_saga.queries.clock import Clock
from outbox_saga.saga.execution import Execution
from outbox_saga.saga.hand import Hand
from tests.fixtures.databases import Database
from tests.saga.shop import Shop


class Abandoned(BaseException):
    """As gevent, trio and pytest have some."""


CANCELLED = [asyncio.CancelledError, concurrent.futures.CancelledError]
pytestmark = pytest.mark.databases("sqlite", "postgres18")


async def left_in_hand(shop: Shop) -> dict[Any, Hand]:
    """Carries on to the end; the hands that the orchestrator has then."""
    orchestrator = shop.service.orchestrator()
    shop.service.orchestrator = lambda **_: orchestrator  # type: ignore[method-assign]
    await shop.to_the_end()
    return orchestrator._hands


@pytest.mark.parametrize("error", [*CANCELLED, Abandoned])
async def test_a_plain_local_step_that_raises_it_fails_and_the_saga_is_undone(
    database: Database, error: type[BaseException]
) -> None:
    shop = Shop(database.url, threads=True)

    def cancelled(_: Any) -> None:
        raise error

    shop.hooks["reserve"] = cancelled
    id_ = await shop.start()

    assert await left_in_hand(shop) == {}

    ended = await shop.instance(id_)
    await shop.service.close()
    assert ended.state.status == "compensated"
    assert f"Misbehaved: it raised {error.__name__}" in (ended.state.reason or "")


async def test_an_async_step_that_raises_what_is_no_exception_fails_and_the_saga_is_undone(
    database: Database,
) -> None:
    shop = Shop(database.url, threads=False)

    def abandoned(_: Any) -> None:
        raise Abandoned

    shop.hooks["reserve"] = abandoned
    id_ = await shop.start()

    assert await left_in_hand(shop) == {}

    ended = await shop.instance(id_)
    await shop.service.close()
    assert ended.state.status == "compensated"
    assert "Misbehaved: it raised Abandoned" in (ended.state.reason or "")


@pytest.mark.parametrize("error", CANCELLED)
async def test_a_plain_external_step_that_raises_it_is_called_again(
    database: Database, error: type[BaseException]
) -> None:
    shop = Shop(database.url, threads=True)
    attempts: list[int] = []

    def charge(step: Any) -> Any:
        attempts.append(step.attempt)
        if step.attempt == 1:
            raise error
        return {"charge": step.key}

    object.__setattr__(shop.saga.steps["charge"], "action", charge)
    id_ = await shop.start()

    assert await left_in_hand(shop) == {}

    ended = await shop.instance(id_)
    await shop.service.close()
    assert (ended.state.status, attempts) == ("completed", [1, 2])


@pytest.mark.parametrize("error", CANCELLED)
async def test_a_plain_query_that_raises_it_is_asked_again(
    database: Database, error: type[BaseException]
) -> None:
    shop = Shop(database.url, threads=True)
    asked: list[str] = []

    def charge(_: Any) -> Any:
        raise ConnectionError

    def was_charged(step: Any) -> Any:
        asked.append(step.key)
        if len(asked) == 1:
            raise error
        return {"charge": step.key}

    for name, value in {"action": charge, "idempotent": False, "query": was_charged}.items():
        object.__setattr__(shop.saga.steps["charge"], name, value)
    id_ = await shop.start()
    for later in (0.0, 600.0, 1200.0):  # it is asked when the call cannot be on its way any more
        service = shop.restarted(Clock(later))
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            assert orchestrator._hands == {}
        orchestrator.close()
        await service.close()

    ended = await shop.instance(id_)
    await shop.service.close()
    assert (ended.state.status, len(asked)) == ("completed", 2)


async def test_whatever_ends_its_drive_an_instance_is_not_kept_in_hand(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(database.url, threads=False)

    async def carried_out(*_: Any) -> Any:
        raise Abandoned

    await shop.start()
    orchestrator = shop.service.orchestrator()
    monkeypatch.setattr(Execution, "carry_out", carried_out)
    with pytest.raises(Abandoned):
        await orchestrator.run_once()
    assert orchestrator._hands == {}
    orchestrator.close()
    await shop.service.close()
