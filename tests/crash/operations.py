"""What the process is doing when it dies: publish, relay, handle, and each kind of saga step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.envelopes import seal
from outbox_saga.messages import Message
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from tests.crash.process import Process, arriving
from tests.crash.shop import Asked, OrderData, Said, Told, noted
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


def arrivals(*messages: Message) -> Callable[[Process], Awaitable[None]]:
    """A broker has these for our handlers, all of one key; they have not come from our outbox."""

    async def arrive(process: Process) -> None:
        for message in messages:
            envelope = seal(message, key="far", source="elsewhere")
            process.world.arrivals.append(**arriving(envelope))

    return arrive


messages_arrive = arrivals(Said(word="from afar 1"), Said(word="from afar 2"))
hard_to_understand = arrivals(Told(word="1 hard"), Told(word="2"))
questions_arrive = arrivals(Asked(word="1"), Asked(word="2"))


async def messages_wait_for_their_handlers(process: Process) -> None:
    """Two messages of a key were delivered, and the handlers failed on the first one."""
    await hard_to_understand(process)
    await process.handle()


async def try_again(process: Process) -> None:
    """Time passes, and what waits is tried until it is handled."""
    await process.wait_out()


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
        Operation("fail and store", hard_to_understand, handle),
        Operation("retry of waiting", messages_wait_for_their_handlers, try_again),
        Operation("pessimistic", questions_arrive, handle),
        *(saga(f"{kind}{suffix}") for kind in KINDS for suffix in ("", "-undone")),
    )
}
