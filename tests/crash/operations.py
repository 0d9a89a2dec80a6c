"""What the process is doing when it dies: publish, relay, handle, and each kind of saga step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.envelopes import seal
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from tests.crash.process import Process, arriving
from tests.crash.shop import OrderData, Said, noted
from tests.crash.tables import order


@dataclass(frozen=True)
class Operation:
    """One thing a process does.

    Args:
        name: In reports, and to replay it.
        prepare: Brings the world to where it begins, undisturbed.
        run: What is disturbed.
        broker: Of the process: "recording", or "local".
        end: How its sagas end, whenever the process dies.
        sagas: The sagas it needs.
    """

    name: str
    prepare: Callable[[Process], Awaitable[None]]
    run: Callable[[Process], Awaitable[None]]
    broker: str = "recording"
    end: str = "completed"
    sagas: tuple[str, ...] = ()


async def nothing(process: Process) -> None:
    """Nothing has to be there."""


# --- publish -------------------------------------------------------------------------------------


def _statements(uow: UnitOfWork[Any], process: Process, number: int) -> list[sa.Insert]:
    """A transaction: three messages, the start of a saga, and a business row for each."""
    id_ = process.shop.sagas["local-async"].start(
        uow, OrderData(order=number), business_key=f"order:{number}"
    )
    statements = [sa.insert(order).values(saga_id=str(id_))]
    for word, key in (("first", "one"), ("second", "two"), ("third", "one"), ("fourth", None)):
        statement, _ = noted(uow.publish, Said(word=f"{word} {number}"), key)
        statements.append(statement)
    return statements


async def publish_sync(process: Process) -> None:
    """Two transactions on a Session."""
    make = sessionmaker(process.database.engine, class_=Session)
    for number in (1, 2):
        with unit_of_work(make, source="crash") as uow:
            for statement in _statements(uow, process, number):
                uow.session.execute(statement)


async def publish_async(process: Process) -> None:
    """Two transactions on an AsyncSession."""
    make = async_sessionmaker(process.database.async_engine, class_=AsyncSession)
    for number in (1, 2):
        async with unit_of_work(make, source="crash") as uow:
            for statement in _statements(uow, process, number):
                await uow.session.execute(statement)


# --- relay ---------------------------------------------------------------------------------------


async def messages_wait(process: Process) -> None:
    """Five messages wait in the outbox, three of them of one key."""
    make = sessionmaker(process.database.engine, class_=Session)
    for number, key in enumerate(("one", "two", "one", None, "one")):
        with unit_of_work(make, source="crash") as uow:
            statement, _ = noted(uow.publish, Said(word=f"{number}"), key)
            uow.session.execute(statement)


async def relay(process: Process) -> None:
    """They are published, page by page."""
    await process.relay()


# --- handle --------------------------------------------------------------------------------------


async def messages_arrive(process: Process) -> None:
    """A broker has two messages for our handlers, which have not come from our outbox."""
    for number in (1, 2):
        envelope = seal(Said(word=f"from afar {number}"), key="far", source="elsewhere")
        process.world.arrivals.append(**arriving(envelope))


async def handle(process: Process) -> None:
    """An async and a plain handler take each of them, and answer."""
    await process.handle()


# --- sagas ---------------------------------------------------------------------------------------


def saga(name: str) -> Operation:
    """One instance of the saga, from its start to its end."""

    async def started(process: Process) -> None:
        make = sessionmaker(process.database.engine, class_=Session)
        with unit_of_work(make, source="crash") as uow:
            id_ = process.shop.sagas[name].start(uow, OrderData(order=7), business_key="order:7")
            uow.session.execute(sa.insert(order).values(saga_id=str(id_)))

    async def carried_on(process: Process) -> None:
        await process.carry_on()

    return Operation(
        f"saga {name}",
        started,
        carried_on,
        end="compensated" if name.endswith("-undone") else "completed",
        sagas=(name,),
    )


KINDS = (
    "local-async",
    "local-def",
    "external-idempotent",
    "external-def",
    "external-query",
    "local-exception",
    "external-exception",
    "local-timeout",
    "external-timeout",
    "five-steps",
)

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("publish sync", nothing, publish_sync, sagas=("local-async",)),
        Operation("publish async", nothing, publish_async, sagas=("local-async",)),
        Operation("relay to a broker", messages_wait, relay),
        Operation("relay to own handlers", messages_wait, relay, broker="local"),
        Operation("handle", messages_arrive, handle),
        *(saga(f"{kind}{suffix}") for kind in KINDS for suffix in ("", "-undone")),
    )
}
