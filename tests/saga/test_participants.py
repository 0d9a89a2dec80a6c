"""What comes to a participant, in every order.

Carried out once, answered alike, never left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import Service
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError
from outbox_saga.participants import Participants
from tests.saga.every_order import answers, in_every_order, in_pairs
from tests.saga.shipping import REFUSED, CancelShipment, ShipOrder, Shipping, commands

Make = Callable[..., Shipping]


@pytest.fixture
async def shipping(database_url: str) -> Any:
    made: list[Shipping] = []

    def make(**options: Any) -> Shipping:
        made.append(Shipping(database_url, **options))
        return made[-1]

    yield make
    for each in made:
        await each.service.close()


@pytest.mark.parametrize("threads", [False, True], ids=["async", "def"])
async def test_a_command_is_carried_out_once_and_answered_alike_each_time(
    shipping: Make, threads: bool
) -> None:
    participant = shipping(threads=threads)
    sent = commands()

    for name in ("do", "do", "do again", "late do"):
        await participant.service.deliver(sent[name])

    assert participant.facts() == ([7], ["do"])
    first, *others = answers(participant)
    assert (first.done, first.data, first.attempt) == (True, {"parcel": "P7"}, 1)
    assert [answer.attempt for answer in others] == [2, 3]  # the duplicate is no sending
    assert all(answer.data == first.data and answer.done for answer in others)
    assert len(set(participant.keys)) == 1


@pytest.mark.parametrize("threads", [False, True], ids=["async", "def"])
async def test_a_business_no_leaves_neither_rows_nor_messages_and_stays_a_no(
    shipping: Make, threads: bool
) -> None:
    participant = shipping(threads=threads)
    participant.hook = lambda _: REFUSED
    sent = commands()

    await participant.service.deliver(sent["do"])
    participant.hook = lambda _: None
    await participant.service.deliver(sent["do again"])
    await participant.service.deliver(sent["undo"])

    assert participant.facts() == ([], [])
    told = answers(participant)
    assert [(a.direction, a.done, a.reason) for a in told] == [
        ("do", False, "nobody ships there"),
        ("do", False, "nobody ships there"),
        ("undo", True, ""),
    ]
    with participant.service.database.engine.connect() as connection:
        outbox = participant.service.database.tables.outbox
        topics = list(connection.scalars(sa.select(outbox.c.topic)))
    assert topics == ["orders.replies"] * 3


async def test_a_handler_that_fails_answers_nobody_and_is_tried_again(shipping: Make) -> None:
    participant = shipping()

    def fails(_: Any) -> None:
        raise OSError

    participant.hook = fails
    await participant.service.deliver(commands()["do"])

    assert participant.facts() == ([], [])
    assert answers(participant) == []
    with participant.service.database.engine.connect() as connection:
        waiting = participant.service.database.tables.inbox_waiting
        barrier = participant.service.database.tables.barrier
        assert connection.execute(sa.select(waiting.c.attempts)).scalar_one() == 1
        assert connection.execute(sa.select(barrier)).all() == []


async def test_in_all_120_orders_no_effect_is_left_and_answers_never_contradict(
    shipping: Make,
) -> None:
    assert await in_every_order(shipping()) == 120


@pytest.mark.databases("sqlite", "postgres18", "mariadb")
async def test_any_two_of_them_at_the_same_moment_come_to_one_of_their_orders(
    shipping: Make,
) -> None:
    assert await in_pairs(shipping()) == 20


async def test_without_the_barrier_an_order_is_found_that_leaves_an_effect(
    shipping: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Participants, "_enter", lambda *_: None)

    with pytest.raises(AssertionError):
        await in_every_order(shipping())


async def test_an_undoing_that_says_no_is_asked_again_and_then_undoes(database_url: str) -> None:
    service = Service("shipping", database=database_url)
    says: list[Any] = [REFUSED, None]

    @service.handles(ShipOrder, undo=CancelShipment)
    async def ship(handle: Any) -> None: ...

    @service.handles(CancelShipment)
    async def cancel(handle: Any) -> Any:
        return says.pop(0)

    shipping = Shipping(database_url)
    sent = commands()
    for name in ("do", "undo", "undo again"):
        await service.deliver(sent[name])

    assert [(a.direction, a.done) for a in answers(shipping)] == [
        ("do", True),
        ("undo", False),
        ("undo", True),
    ]
    await shipping.service.close()
    await service.close()


async def test_a_command_that_no_saga_has_sent_is_handled_as_any_message(
    shipping: Make,
) -> None:
    participant = shipping()
    async with participant.service.unit_of_work() as uow:
        uow.publish(ShipOrder(order_id=7, address="x"))
    plain = commands()["do"]
    await participant.service.deliver(
        Envelope(plain.id, plain.topic, plain.key, plain.type, plain.body, kind="command")
    )

    assert participant.facts() == ([7], ["do"])
    assert answers(participant) == []


def test_a_command_whose_undoing_nobody_handles_is_refused_before_anything_is_consumed(
    database_url: str,
) -> None:
    service = Service("shipping", database=database_url)

    @service.handles(ShipOrder, undo=CancelShipment)
    async def ship(handle: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="CancelShipment, which nothing handles here"):
        service.publisher()


async def test_a_handler_may_be_an_object_that_is_called(database_url: str) -> None:
    class Ships:
        async def __call__(self, handle: Any) -> dict[str, str]:
            return {"parcel": "P7"}

    shipping = Shipping(database_url)
    service = Service("other", database=database_url)
    service.handles(ShipOrder)(Ships())
    await service.deliver(commands()["do"])

    assert [answer.data for answer in answers(shipping)] == [{"parcel": "P7"}]
    await service.close()
    await shipping.service.close()


async def test_an_answer_that_is_no_json_is_a_failed_attempt(database_url: str) -> None:
    shipping = Shipping(database_url)
    shipping.hook = lambda _: {"parcel": object()}
    await shipping.service.deliver(commands()["do"])

    waiting = shipping.service.database.tables.inbox_waiting
    with shipping.service.database.engine.connect() as connection:
        (code,) = connection.scalars(sa.select(waiting.c.error_code))
    assert code == "handler_answer"
    assert shipping.facts() == ([], [])
    await shipping.service.close()
