"""Random programs against a model that knows nothing of the product: a stack of lists."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.write_path.programs import (
    CONNECTION_TOKENS,
    SESSION_TOKENS,
    AsyncRunner,
    SyncRunner,
    expected,
    possible,
    run_async_connection,
    run_async_session,
    run_connection,
    run_session,
)
from tests.write_path.shop import Shop

pytestmark = pytest.mark.databases("sqlite", "postgres18")

thorough = settings(
    max_examples=int(os.environ.get("OUTBOX_SAGA_TEST_PROGRAMS", "60")),
    deadline=None,
    derandomize="OUTBOX_SAGA_TEST_PROGRAMS" not in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def programs(tokens: str) -> st.SearchStrategy[str]:
    # what makes and ends nested blocks more often than what ends everything
    weighted = "".join(token * (1 if token in "CRX" else 3) for token in tokens)
    return st.text(st.sampled_from(weighted), max_size=24).map(lambda text: possible(text + "C"))


def judge(shop: Shop, program: str) -> None:
    note(f"program: {program}")
    assert (shop.words(), shop.notes()) == expected(program), program


@pytest.mark.parametrize("run", [run_session, run_connection], ids=lambda run: run.__name__)
def test_sync(shop: Shop, run: SyncRunner) -> None:
    tokens = SESSION_TOKENS if run is run_session else CONNECTION_TOKENS

    @thorough
    @given(programs(tokens))
    def check(program: str) -> None:
        shop.empty()
        run(shop, program)
        judge(shop, program)

    check()


@pytest.mark.parametrize(
    "run", [run_async_session, run_async_connection], ids=lambda run: run.__name__
)
def test_async(shop: Shop, run: AsyncRunner) -> None:
    tokens = SESSION_TOKENS if run is run_async_session else CONNECTION_TOKENS
    with asyncio.Runner() as loop:
        engine: AsyncEngine = shop.make_async_engine()

        @thorough
        @given(programs(tokens))
        def check(program: str) -> None:
            shop.empty()
            loop.run(_awaited(lambda: run(engine, program)))
            judge(shop, program)

        check()
        loop.run(engine.dispose())


async def _awaited(run: Callable[[], object]) -> None:
    await run()  # type: ignore[misc]
