"""A command and its answer without a saga: once, durably, and with a clear end."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from outbox_saga import (
    Command,
    Failure,
    HandlerContext,
    RequestFaulted,
    RequestTimeout,
    Retry,
    Service,
    Success,
)
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.decisions import Decision
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError
from outbox_saga.ids import new_id
from outbox_saga.queries.clock import Clock
from outbox_saga.waiting_messages import WaitingMessages
from outbox_saga_migrations import upgrade
from outbox_saga_relay.housekeeping import DAY, Housekeeping
from outbox_saga_relay.relay import Relay
from tests.fixtures.databases import Database
from tests.saga.shipping import CancelShipment, ShipOrder, Shipping


class Asking:
    """A shop that asks shipping, each with a database of its own; `carry` is the broker."""

    def __init__(self, url: str, shipping: Shipping) -> None:
        self.shop = Service("shop", database=url, requests=True)
        self.shipping = shipping
        with self.shop.database.begin() as connection:
            upgrade(connection)
        self.carried: list[Envelope] = []

    async def ask(self, order_id: int = 7) -> UUID:
        async with self.shop.unit_of_work() as uow:
            return self.shop.ask(uow, ShipOrder(order_id=order_id, address="Lovelace Road 1"))

    async def withdraw(self, request: UUID, order_id: int = 7) -> None:
        async with self.shop.unit_of_work() as uow:
            self.shop.withdraw(uow, request, CancelShipment(order_id=order_id))

    async def carry(self, service: Service) -> None:
        async def deliver(envelope: Envelope) -> int:
            self.carried.append(envelope)
            counts = [await s.deliver(envelope) for s in (self.shop, self.shipping.service)]
            return sum(counts)

        publisher = LocalPublisher(deliver, concurrency=4, timeout=30.0)
        await Relay(service.database, publisher, listen=False).run_until_empty()

    async def carry_all(self) -> None:
        await self.carry(self.shop)
        await self.carry(self.shipping.service)

    async def answer(self, request: UUID) -> Any:
        """What is there now."""
        return await self.shop.async_reply(request, timeout=0.0)


pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")


@pytest.fixture
async def asking(database: Database, fresh_database: Any) -> AsyncIterator[Asking]:
    in_threads = database.name == "mariadb"
    shipping = Shipping(fresh_database(database.name).url, threads=in_threads)
    made = Asking(database.url, shipping)
    yield made
    await made.shop.close()
    await shipping.service.close()


async def test_a_request_is_carried_out_once_and_answered(asking: Asking) -> None:
    request = await asking.ask()
    await asking.carry_all()
    for envelope in list(asking.carried):  # brokers deliver twice
        await asking.shop.deliver(envelope)
        await asking.shipping.service.deliver(envelope)

    answer = await asking.answer(request)

    assert answer == Success({"parcel": "P7"})
    assert asking.shop.reply(request, timeout=0.0) == answer, "as often as it is asked for"
    assert asking.shipping.facts() == ([7], ["do"])


async def test_a_business_no_leaves_nothing_and_is_told(asking: Asking) -> None:
    asking.shipping.hook = lambda _: Failure("no such street")
    request = await asking.ask()

    await asking.carry_all()

    assert await asking.answer(request) == Failure("no such street")
    assert asking.shipping.facts() == ([], [])


async def test_without_an_answer_it_is_unknown_and_can_be_waited_for_again(
    asking: Asking,
) -> None:
    request = await asking.ask()
    with pytest.raises(RequestTimeout, match=str(request)) as late:
        await asking.answer(request)
    with pytest.raises(TimeoutError):
        asking.shop.reply(request, timeout=0.0)

    await asking.carry_all()

    assert await asking.answer(late.value.request) == Success({"parcel": "P7"})
    assert pickle.loads(pickle.dumps(late.value)).request == request


async def test_what_is_asked_twice_under_one_id_is_carried_out_once(asking: Asking) -> None:
    request = new_id()
    for _ in range(2):
        async with asking.shop.unit_of_work() as uow:
            command = ShipOrder(order_id=7, address="x")
            assert asking.shop.ask(uow, command, request=request) == request
    await asking.carry_all()

    assert await asking.answer(request) == Success({"parcel": "P7"})
    assert asking.shipping.facts() == ([7], ["do"])


async def test_a_request_that_is_rolled_back_never_leaves(asking: Asking) -> None:
    async with asking.shop.unit_of_work() as uow:
        asking.shop.ask(uow, ShipOrder(order_id=7, address="x"))
        await uow.session.rollback()

    await asking.carry_all()

    assert asking.carried == []


async def test_a_withdrawn_request_is_undone_or_never_done(asking: Asking) -> None:
    done, too_early = await asking.ask(7), await asking.ask(8)
    asking.shipping.hook = lambda handle: Failure("no") if handle.message.order_id == 8 else None
    await asking.carry(asking.shop)
    await asking.withdraw(done, 7)
    await asking.withdraw(too_early, 8)
    await asking.carry_all()

    never = new_id()
    await asking.withdraw(never, 9)
    await asking.carry_all()

    assert asking.shipping.facts() == ([], ["do", "undo"])
    assert await asking.answer(done) == Success({"parcel": "P7"}), "what was answered stays so"
    with pytest.raises(RequestTimeout):
        await asking.answer(never)


async def test_a_command_that_comes_after_its_withdrawal_is_refused(asking: Asking) -> None:
    request = await asking.ask()
    held_up: list[Envelope] = []

    async def hold(envelope: Envelope) -> int:
        held_up.append(envelope)
        return 1

    publisher = LocalPublisher(hold, concurrency=1, timeout=30.0)
    await Relay(asking.shop.database, publisher, listen=False).run_until_empty()
    await asking.withdraw(request)
    await asking.carry_all()
    for envelope in held_up:
        await asking.shipping.service.deliver(envelope)
    await asking.carry_all()

    assert asking.shipping.facts() == ([], [])
    assert await asking.answer(request) == Failure("it was undone before it came")


async def test_what_its_handler_gives_up_is_a_fault_until_it_is_answered_after_all(
    database: Database, fresh_database: Any
) -> None:
    shipping = Shipping(fresh_database(database.name).url)
    asking = Asking(database.url, shipping)
    parts = Service("parts", database=shipping.service.database)
    broken = True

    class Mend(ShipOrder, topic="mending"):
        pass

    @parts.handles(Mend, retry=Retry(max_attempts=2))
    async def mend(handle: HandlerContext[Mend]) -> dict[str, int]:
        if broken:
            raise ValueError("secret 4711")
        return {"mended": handle.message.order_id}

    asking.shipping.service = parts
    async with asking.shop.unit_of_work() as uow:
        request = asking.shop.ask(uow, Mend(order_id=7, address="x"))
    await asking.carry_all()
    with pytest.raises(RequestTimeout):
        await asking.answer(request)  # it waits for its second attempt
    parts.database.clock = Clock(3600.0)
    await parts.waiting_room().run_once()
    await asking.carry_all()

    with pytest.raises(RequestFaulted, match="handler_failed") as fault:
        await asking.answer(request)
    assert "4711" not in str(fault.value)
    assert all(b"4711" not in envelope.body for envelope in asking.carried)
    assert pickle.loads(pickle.dumps(fault.value)).code == "handler_failed"

    broken = False
    messages = WaitingMessages(parts.database)
    (dead,) = await messages.list(state="dead")
    await messages.retry(dead, Decision("grace", "it is mended"))
    await parts.waiting_room().run_once()
    await asking.carry_all()
    assert await asking.answer(request) == Success({"mended": 7})

    late_fault = next(e for e in asking.carried if b'"fault":"handler_failed"' in e.body)
    await asking.shop.deliver(late_fault)
    assert await asking.answer(request) == Success({"mended": 7})
    await asking.shop.close()
    await parts.close()
    await shipping.service.close()


@pytest.mark.databases("sqlite")
async def test_a_fault_that_cannot_be_told_keeps_nothing_from_being_given_up(
    database: Database,
) -> None:
    shop = Service("shop", database=database.url, requests=True)
    with shop.database.begin() as connection:
        upgrade(connection)

    class Odd(Command, topic="odd"):
        n: int

    @shop.handles(Odd, retry=Retry(max_attempts=1))
    async def fail(handle: HandlerContext[Odd]) -> None:
        raise ValueError("no")

    headers = {
        "saga-id": str(new_id()), "saga-step": "request", "saga-direction": "do",
        "saga-generation": "0", "saga-attempt": "1", "saga-reply-to": "x",
        "saga-fault-to": "a b *",
    }  # fmt: skip
    async with shop.unit_of_work() as uow:
        uow.publish(Odd(n=1), headers=headers)

    publisher = LocalPublisher(shop.deliver, concurrency=1, timeout=30.0)
    await Relay(shop.database, publisher, listen=False).run_until_empty()

    assert len(await WaitingMessages(shop.database).list(state="dead")) == 1
    await shop.close()


@pytest.mark.databases("sqlite")
def test_who_takes_no_answers_in_cannot_ask(database: Database) -> None:
    service = Service("shop", database=database.url)
    with service.database.begin() as connection:
        upgrade(connection)
    with (
        service.unit_of_work() as uow,
        pytest.raises(ConfigurationError, match="requests=True"),
    ):
        service.ask(uow, ShipOrder(order_id=7, address="x"))
    service.database.dispose()


async def test_answers_are_forgotten_with_the_inbox(asking: Asking) -> None:
    request = await asking.ask()
    await asking.carry_all()
    asking.shop.database.clock = Clock(31 * DAY)
    keeping = Housekeeping(asking.shop.database, archive_window=None)
    planned = keeping.plan().replies

    pruned = (await keeping.run_once()).replies

    assert (planned, pruned) == (1, 1)
    with pytest.raises(RequestTimeout):
        await asking.answer(request)


@pytest.mark.databases("sqlite", "postgres18")
async def test_services_ask_each_other_over_nats(
    database: Database, fresh_database: Any, nats_url: str
) -> None:
    name = f"requests-{uuid4().hex[:12]}"
    broker = f"{nats_url}?stream={name}&prefix={name}&create=1"
    shipping = Shipping(fresh_database(database.name).url, broker=broker)
    shop = Service("shop", database=database.url, broker=broker, requests=True)
    with shop.database.begin() as connection:
        upgrade(connection)
    command = ShipOrder(order_id=7, address="Lovelace Road 1")
    from_a_thread: list[Any] = []

    async with asyncio.timeout(60), shipping.service.running(), shop.running():
        answer = await shop.async_request(command, key="order:7", timeout=50.0)
        asked = threading.Thread(
            target=lambda: from_a_thread.append(
                shop.request(ShipOrder(order_id=8, address="x"), timeout=50.0)
            )
        )
        asked.start()
        await asyncio.to_thread(asked.join)

    assert answer == Success({"parcel": "P7"})
    assert from_a_thread == [Success({"parcel": "P8"})]
    assert shipping.facts()[0] == [7, 8]
    with shop.database.engine.connect() as connection:
        rows = connection.execute(sa.select(shop.database.tables.reply.c.outcome)).all()
    assert [row.outcome for row in rows] == ["done", "done"]
    await shop.close()
    await shipping.service.close()
