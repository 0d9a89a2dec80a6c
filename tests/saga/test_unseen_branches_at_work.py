"""As `test_unseen_branches`, with everything real: the effects of both, in their order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Failure, Saga, Service, StepContext, nothing_to_undo
from outbox_saga.queries import sagas
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Flight, Surroundings
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

PATIENCE = 20.0
BESIDE: Flight = ("beside", "do")
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


class Yard:
    """`first` ends while `beside` reports its no, having looked who is on his way just when nobody
    was: `first` no longer, and `second` not yet.
    """

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on = {name: asyncio.Event() for name in ("do second", "undo first")}
        self.came = {name: asyncio.Event() for name in self.goes_on}
        saga = Saga("yard", data=Order).step("first", self.act, compensation=self.act)
        saga.step("beside", self.refuse, compensation=nothing_to_undo, after=())
        self.saga = saga.step("second", self.act, compensation=self.act, after="first")
        self.service = Service("yard", database=url, sagas=[self.saga])
        with self.service.database.begin() as connection:
            upgrade(connection)
        with self.service.database.begin() as connection:
            effects.metadata.create_all(connection)
        looks = Hand.surroundings

        def surroundings(hand: Hand, reporting: Flight | None) -> Surroundings:
            seen = looks(hand, reporting)
            return replace(seen, in_flight=frozenset()) if reporting == BESIDE else seen

        monkeypatch.setattr(Hand, "surroundings", surroundings)

    async def refuse(self, _: StepContext[Order]) -> Any:
        async with asyncio.timeout(PATIENCE):
            await self.came["do second"].wait()
        return Failure("no")

    async def act(self, step: StepContext[Order]) -> None:
        name = f"{step.direction} {step.step}"
        if name in self.goes_on:
            self.came[name].set()
            async with asyncio.timeout(PATIENCE):
                await self.goes_on[name].wait()
        await step.session.execute(sa.insert(effects).values(what=name))

    async def happens(self, first: str, then: str) -> tuple[str, list[str]]:
        """Both are on their way; the one commits, and then the other one would."""
        async with self.service.unit_of_work() as uow:
            id_ = self.saga.start(uow, Order())
        orchestrator = self.service.orchestrator()
        working = asyncio.create_task(orchestrator.run_once())
        async with asyncio.timeout(PATIENCE):
            for came in self.came.values():
                await came.wait()
            self.goes_on[first].set()
            while first not in self._effects():  # noqa: ASYNC110 - a table
                await asyncio.sleep(0.01)
            self.goes_on[then].set()
            await working
            while await orchestrator.run_once():
                pass
        orchestrator.close()
        return await self._status(id_), self._effects()

    def _effects(self) -> list[str]:
        with self.service.database.begin() as connection:
            return list(connection.scalars(sa.select(effects.c.what).order_by(effects.c.number)))

    async def _status(self, id_: UUID) -> str:
        database = self.service.database
        found = await database.look(sagas.read, database.tables, id_)
        assert found is not None
        return found.state.status


@pytest.mark.databases("postgres18", "mariadb")  # SQLite has one writer: they cannot overlap
@pytest.mark.parametrize(
    ("first", "then", "wanted"),
    [
        ("undo first", "do second", ["do first", "undo first"]),
        ("do second", "undo first", ["do first", "do second", "undo second", "undo first"]),
    ],
)
async def test_what_a_step_waits_for_is_there_as_long_as_its_effect_is(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    then: str,
    wanted: list[str],
) -> None:
    yard = Yard(database.url, monkeypatch)
    assert await yard.happens(first, then) == ("compensated", wanted)
    await yard.service.close()
