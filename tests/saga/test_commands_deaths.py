"""Both services die at points of a command's way, and others go on: they agree at the end.

Here at some, on SQLite; at every point, on all three: `./dev soak` of this file.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga import Failure
from outbox_saga.errors import HandlerFailed
from outbox_saga.testing.crash_points import CrashPoints, ProcessDied
from tests.fixtures.databases import Database as Given
from tests.saga.shipping import House, Shipping, ordering

LATER = 1000.0  # seconds: beside all leases and answers
MOST_STARTS = 10  # until the saga has ended


async def no(step: Any) -> Failure[str]:
    return Failure("not today")


class Life:
    """One start of both services in one process, up to its end or its death."""

    def __init__(
        self, urls: tuple[str, str], points: CrashPoints, *, undone: bool, later: float = 0.0
    ) -> None:
        orders, shipping = urls
        saga = ordering(after=no) if undone else ordering()
        self._points = points
        participant = Shipping(shipping, watch=points.watch, later=later)
        self.house = House(orders, participant, saga, watch=points.watch, later=later)

    async def lived(self, observer: sa.Engine, id_: UUID | None = None) -> None:
        """Until the saga has ended; one is started unless it is given.

        What comes again is nothing new: each message is delivered once more.
        """
        try:
            if id_ is None:
                await self.house.start()
            while True:
                await self.house.to_and_fro()
                if not (await self._again()):
                    return
        except (ProcessDied, HandlerFailed):
            if not self._points.dead:
                raise
        finally:
            for service in (*self.house.services, self.house.shipping.service):
                service._threads.shutdown()
            if self._points.dead:
                self._points.bury(observer)
            else:
                for service in self.house.services:
                    await service.close()
                await self.house.shipping.service.close()

    async def _again(self) -> bool:
        carried, self.house.carried = self.house.carried, []
        for envelope in carried:
            await self.house.orders.deliver(envelope)
            await self.house.shipping.service.deliver(envelope)
        return bool(carried)


def agreement(urls: tuple[str, str], *, undone: bool) -> str:
    """What is wrong at rest; "" if nothing is."""
    shipping = Shipping(urls[1], watch=lambda _: None)
    engine = sa.create_engine(urls[0])
    saga = shipping.service.database.tables.saga
    with engine.connect() as connection:
        states = list(connection.scalars(sa.select(saga.c.state)))
    engine.dispose()
    left, did = shipping.facts()
    shipping.service.database.engine.dispose()
    if states == []:  # it died before the start was committed
        return "" if (left, did) == ([], []) else f"nobody started it, and {did} was done"
    allowed: dict[str, tuple[list[int], tuple[list[str], ...]]] = {
        "compensated": ([], (["do", "undo"], []))
    }
    if not undone:
        allowed["completed"] = ([7], (["do"],))
    (state,) = states
    if state not in allowed or left != allowed[state][0] or did not in allowed[state][1]:
        return f"the saga is {state}, {left} is shipped, and {did} was done"
    return ""


def empty(urls: tuple[str, str]) -> None:
    for url in urls:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            tables = sa.MetaData()
            tables.reflect(connection)
            for table in tables.tables.values():
                if "version" in table.name or "lease" in table.name or "key_lock" in table.name:
                    continue
                connection.execute(sa.delete(table))
        engine.dispose()


@pytest.mark.timeout(1800)
@pytest.mark.databases("sqlite", "postgres18", "mariadb")
@pytest.mark.parametrize("undone", [False, True], ids=["completes", "is-undone"])
def test_whoever_dies_wherever_both_services_agree_at_the_end(
    database: Given, fresh_database: Any, undone: bool, soak: bool
) -> None:
    if database.name != "sqlite" and not soak:
        pytest.skip("./dev soak")
    urls = (database.url, fresh_database(database.name).url)
    asyncio.run(House(urls[0], Shipping(urls[1]), ordering()).close())
    observer = sa.create_engine(urls[0], poolclass=sa.NullPool)
    points = CrashPoints()
    asyncio.run(Life(urls, points, undone=undone).lived(observer))
    assert agreement(urls, undone=undone) == ""
    assert points.count > 50
    step = 1 if soak else 41
    for at in [*range(1, points.count, step), points.count]:
        empty(urls)
        dying = CrashPoints(at)
        asyncio.run(Life(urls, dying, undone=undone).lived(observer))
        assert dying.dead, f"point {at} was not reached"
        wrong = "the saga is running"
        for starts in range(1, MOST_STARTS):
            if "running" in wrong or "compensating" in wrong:
                after = Life(urls, CrashPoints(), undone=undone, later=LATER * starts)
                asyncio.run(after.lived(observer, UUID(int=0)))
                wrong = agreement(urls, undone=undone)
        assert not wrong, f"died at point {at} ({dying.place}): {wrong}"
