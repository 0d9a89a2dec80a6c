"""python-saga-orchestrator: sagas of three steps, started and carried out by its own loop."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import carried  # pyright: ignore[reportMissingImports] - beside this script
from loguru import logger  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel
from saga_orchestrator import (  # pyright: ignore[reportMissingImports]
    BaseStep,
    SagaBuilder,
    SagaOrchestrator,
    SagaStateMixin,
    SagaStepHistoryMixin,
)
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """A service's own."""


class History(Base, SagaStepHistoryMixin):  # type: ignore[misc]  # its types are elsewhere
    """Its history."""

    __tablename__ = "saga_history"
    saga_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("saga_state.id", ondelete="CASCADE"), index=True
    )


class State(Base, SagaStateMixin):  # type: ignore[misc]
    """Its sagas."""

    __tablename__ = "saga_state"
    step_history: Mapped[list[History]] = relationship(
        "History", cascade="all, delete-orphan", order_by="History.id"
    )


class Given(BaseModel):
    """What a step gets."""

    account: int


class Answer(BaseModel):
    """What a step answers."""

    step: str


class Step(BaseStep[Given, Answer]):  # type: ignore[misc]
    """One UPDATE in a transaction of its own, and one that undoes it."""

    def __init__(self, engine: AsyncEngine, name: str, *, fails: bool) -> None:
        self.engine, self.name, self.fails = engine, name, fails

    async def execute(self, inp: Given, *_: Any, **__: Any) -> Answer:
        """Does it."""
        async with self.engine.begin() as connection:
            await connection.execute(carried.DO, {"account": inp.account})
            if self.fails:
                raise carried.NoStock
        return Answer(step=self.name)

    async def compensate(self, inp: Given, *_: Any, **__: Any) -> None:
        """Undoes it."""
        async with self.engine.begin() as connection:
            await connection.execute(carried.UNDO, {"account": inp.account})


@contextmanager
def opened(order: carried.Order) -> Iterator[Callable[[], int]]:
    """On tables of its own."""
    logger.remove()
    with asyncio.Runner() as runner:
        engine = create_async_engine(order.url(order.settings["driver"]), pool_size=20)
        runner.run(create(engine))
        orchestrator = SagaOrchestrator[State, History](
            model_class=State,
            history_model_class=History,
            session_maker=async_sessionmaker(engine, expire_on_commit=False),
        )
        builder = SagaBuilder()
        for name in carried.STEPS:
            builder.add_step(
                step=Step(engine, name, fails=order.failing and name == carried.STEPS[-1]),
                input_map=lambda given: Given(account=given.initial_data["account"]),
            )
        orchestrator.register("bench", builder.build())
        yield lambda: runner.run(carry(order, orchestrator, engine))
        runner.run(engine.dispose())


async def create(engine: AsyncEngine) -> None:
    """Its tables, anew."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)


async def carry(order: carried.Order, orchestrator: Any, engine: AsyncEngine) -> int:
    """All of them; one that fails is undone before `start` returns."""
    waiting = iter(range(order.sagas))

    async def client() -> None:
        for number in waiting:
            await orchestrator.start(
                saga_name="bench",
                initial_data={"account": number % order.accounts},
                aggregation_id=str(number),
            )

    await asyncio.gather(*(client() for _ in range(order.in_flight)))
    async with engine.connect() as connection:
        rows = await connection.execute(select(State.status, func.count()).group_by(State.status))
        found = {str(getattr(status, "value", status)).lower(): count for status, count in rows}
    return int(found.get("compensated" if order.failing else "completed", 0))


carried.run(opened)
