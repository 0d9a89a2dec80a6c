"""As `test_decisions`, with everything real."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Failure, NotDone, Retry, Saga, Service, StepContext
from outbox_saga.queries import sagas
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

PATIENCE = 20.0
effects = sa.Table(
    "effect",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("what", sa.String(40), nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)


class Order(BaseModel):
    order_id: int = 7


def left_out(_: Order) -> bool:
    return False


def fails(_: Order) -> bool:
    raise LookupError


class Yard:
    """One service with one saga, and a table of effects."""

    def __init__(self, url: str, saga: Saga[Order]) -> None:
        self.saga = saga
        self.service = Service("yard", database=url, sagas=[saga], poll=0.02)
        with self.service.database.begin() as connection:
            upgrade(connection)
        with self.service.database.begin() as connection:
            effects.metadata.create_all(connection)

    async def goes(self) -> str:
        """As far as it goes now; its status then."""
        async with self.service.unit_of_work() as uow:
            id_ = self.saga.start(uow, Order())
        orchestrator = self.service.orchestrator()
        async with asyncio.timeout(PATIENCE):
            while await orchestrator.run_once():
                pass
        orchestrator.close()
        database = self.service.database
        found = await database.look(sagas.read, database.tables, id_)
        assert found is not None
        return found.state.status

    def effects(self) -> list[str]:
        with self.service.database.begin() as connection:
            return list(connection.scalars(sa.select(effects.c.what).order_by(effects.c.number)))


@pytest.mark.databases("sqlite")
async def test_what_a_step_behind_one_left_out_waits_for_stays_while_that_cannot_be_undone(
    database: Database,
) -> None:
    async def act(step: StepContext[Order]) -> None:
        await step.session.execute(sa.insert(effects).values(what=f"{step.direction} {step.step}"))

    async def refuse(_: StepContext[Order]) -> Any:
        return Failure("no")

    saga = Saga("yard", data=Order).step("a", act, compensation=act)
    saga.step("b", act, compensation=act, when=left_out)
    saga.step("c", act, compensation=refuse)
    yard = Yard(database.url, saga.step("d", refuse, compensation=act))
    status, happened = await yard.goes(), yard.effects()
    await yard.service.close()
    assert (status, happened) == ("stuck", ["do a", "do c"])


@pytest.mark.databases("sqlite")
async def test_a_call_that_was_certainly_not_made_does_not_keep_its_saga_from_ending(
    database: Database,
) -> None:
    calls: list[int] = []

    async def act(_: StepContext[Order]) -> None: ...

    async def charge(step: StepContext[Order]) -> None:
        calls.append(step.attempt)
        raise NotDone("the card machine is switched off")

    saga = Saga("yard", data=Order).step("first", act, compensation=act)
    saga.step(
        "card", charge, compensation=act, external=True, idempotent=True, after="first",
        retry=Retry(max_attempts=1),
    )  # fmt: skip
    saga.step("third", act, compensation=act, after="first", when=fails)
    yard = Yard(database.url, saga)
    status = await yard.goes()
    await yard.service.close()
    assert (status, calls) == ("compensated", [1])
