"""What no handler can be given is kept all the same: unreadable, altered, of a newer version."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from outbox_saga import Event
from outbox_saga.consuming import answer
from outbox_saga.decisions import Decision
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import MessageRefused
from outbox_saga.ids import altered_id, new_id
from outbox_saga.queries.inbox import body_hash
from outbox_saga.waiting_messages import WaitingMessages
from tests.inbox.processes import LATER, MakeProcess, Moods, note, said
from tests.relay.house import House, Said


class Delivered:
    """A delivery with these headers, as a broker would hand it over."""

    def __init__(self, headers: dict[str, str], body: bytes, topic: str = "talk") -> None:
        self.topic, self.headers, self.body, self.attempt = topic, headers, body, 1
        self.became: list[str] = []

    @property
    def envelope(self) -> Envelope:
        return Envelope.from_headers(self.topic, self.headers, self.body)

    async def acknowledge(self) -> None:
        self.became.append("acknowledged")

    async def retry(self, delay: float) -> None:
        self.became.append("retried")

    async def reject(self, reason: str) -> None:
        self.became.append("rejected")


async def test_a_body_that_does_not_fit_is_a_dead_letter_at_once_and_parks_its_key(
    house: House, process: MakeProcess
) -> None:
    moods = Moods()
    listener = process(moods.asynchronous)
    bad = replace(said("one", key="k"), body=b'{"word": 7}')
    await listener.deliver(bad, said("two", key="k"))
    await listener.later()
    first, second = house.set_aside()
    assert (first.until, first.error_code, first.body) == (None, "unreadable", b'{"word": 7}')
    assert second.failed_at is None
    assert moods.asked == []


async def test_a_newer_version_is_kept_until_the_newer_consumer_is_there(
    house: House, process: MakeProcess
) -> None:
    newer = replace(said("one", key="k"), version=2)
    await process(note).deliver(newer)
    (row,) = house.set_aside()
    assert row.error_code == "unreadable"
    assert "deploy the newer consumer" in row.error

    class Said2(Said, name="Said", version=2):
        pass

    new = process(note)
    new.service.handlers._handlers.clear()
    new.service.on(Said2, consumer="listener")(note)
    messages = WaitingMessages(house.database)
    (seen,) = await messages.list()
    await messages.retry(seen, Decision("ada", "deployed"))
    assert await new.service.waiting_room().run_once() == 1
    assert house.notes() == ["one"]


BAD_HEADERS: dict[str, dict[str, str]] = {
    "kind": {"ce-kind": "rumour"},
    "version": {"ce-dataversion": "two"},
    "control characters": {"ce-source": "a%0ab"},
}


@pytest.mark.parametrize("bad", BAD_HEADERS.values(), ids=BAD_HEADERS)
async def test_an_envelope_that_cannot_be_read_is_kept_as_it_came_and_acknowledged(
    house: House, process: MakeProcess, bad: dict[str, str]
) -> None:
    envelope = said("one", key="k")
    delivery = Delivered({**envelope.to_headers(), **bad}, envelope.body)
    with pytest.raises(MessageRefused):
        _ = delivery.envelope
    listener = process(note)
    for _ in range(2):
        await answer(listener.service.handling, "listener", delivery)
    assert delivery.became == ["acknowledged"] * 2
    (row,) = house.set_aside()
    assert (row.message_id, row.key, row.topic, row.until) == (envelope.id, "k", "talk", None)
    assert (row.error_code, row.body) == ("unreadable", envelope.body)
    assert json.loads(row.headers)["raw"] == delivery.headers


async def test_what_was_kept_as_it_came_is_handled_once_it_can_be_read(
    house: House, process: MakeProcess
) -> None:
    envelope = said("one", key="k")
    delivery = Delivered({**envelope.to_headers(), "ce-kind": "rumour"}, envelope.body)
    listener = process(note)
    await answer(listener.service.handling, "listener", delivery)
    messages = WaitingMessages(house.database)
    (seen,) = await messages.list()
    await messages.retry(seen, Decision("ada", "try"))
    await listener.to_rest()
    (row,) = house.set_aside()
    assert (row.error_code, row.attempts) == ("unreadable", 2)

    with house.eyes.begin() as connection:  # a release that knows this kind, in effect
        mended = json.dumps({"raw": envelope.to_headers()})
        connection.execute(house.tables.inbox_waiting.update().values(headers=mended))
    (seen,) = await messages.list()
    await messages.retry(seen, Decision("ada", "deployed"))
    await listener.to_rest()
    assert house.notes() == ["one"]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("headers", [{}, {"ce-id": "7"}])
async def test_what_has_no_id_is_rejected_and_told(
    house: House,
    process: MakeProcess,
    headers: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    delivery = Delivered(headers, b"hushhush")
    await answer(process(note).service.handling, "listener", delivery)
    assert delivery.became == ["rejected"]
    assert house.set_aside() == []
    (told,) = (r for r in caplog.records if r.levelno == logging.ERROR)
    assert "hushhush" not in told.getMessage()


@pytest.mark.parametrize("key", ["x" * 300, "a\x01b"])
async def test_a_key_no_table_can_hold_is_unreadable_and_holds_up_nothing(
    house: House, process: MakeProcess, key: str
) -> None:
    listener = process(note)
    await listener.deliver(replace(said("one"), key=key), said("two"))
    (row,) = house.set_aside()
    assert (row.key, row.until, row.error_code) == (None, None, "unreadable")
    assert json.loads(row.headers)["raw"]["ce-partitionkey"] == key
    assert house.notes() == ["two"]
    messages = WaitingMessages(house.database)
    (seen,) = await messages.list()
    await messages.retry(seen, Decision("ada", "try"))
    await listener.to_rest()
    assert [(r.error_code, r.attempts) for r in house.set_aside()] == [("unreadable", 2)]


async def test_headers_of_others_that_no_text_column_takes_keep_no_message_from_waiting(
    house: House, process: MakeProcess
) -> None:
    odd = replace(said("one", key="k"), headers={"x-odd": "a\x00b"})
    moods = Moods("one")
    listener = process(moods.asynchronous)
    await listener.deliver(odd)
    (row,) = house.set_aside()
    assert row.error_code == "handler_failed"
    moods.poison.clear()
    await listener.later()
    assert house.notes() == ["one"]


# --- the same id, another body -------------------------------------------------------------------


def altered(envelope: Envelope, word: str = "forged") -> Envelope:
    return replace(envelope, body=Said(word=word).to_body())


@pytest.mark.parametrize("when", ["handled", "waiting", "dead"])
async def test_another_body_under_a_known_id_is_parked_with_an_alarm_and_not_dropped(
    house: House, process: MakeProcess, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    moods = Moods() if when == "handled" else Moods("one")
    listener, envelope = process(moods.asynchronous), said("one", key="k")
    await listener.deliver(envelope)
    if when == "dead":
        await listener.later(times=3)
    before = len(house.set_aside())
    caplog.clear()

    await listener.deliver(altered(envelope), altered(envelope))

    row = house.set_aside()[-1]
    assert len(house.set_aside()) == before + 1
    assert (row.error_code, row.until, row.body) == ("altered", None, altered(envelope).body)
    assert str(envelope.id) in row.error
    assert row.message_id == altered_id(envelope.id, body_hash(row.body))
    alarms = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(alarms) == 1
    assert "came again with another body" in alarms[0]
    assert "forged" not in alarms[0]
    moods.poison.clear()
    if when == "handled":
        await listener.deliver(said("two", key="k"))  # it holds up nothing
        assert house.notes() == ["one", "two"]
    else:
        assert "forged" not in house.notes()


async def test_an_altered_message_can_be_handled_after_all_under_an_id_of_its_own(
    house: House, process: MakeProcess
) -> None:
    listener, envelope = process(note), said("one", key="k")
    await listener.deliver(envelope, altered(envelope))
    messages = WaitingMessages(house.database)
    (seen,) = await messages.list()
    assert (seen.key, seen.holds_up_key) == ("k", False)
    await messages.retry(seen, Decision("ada", "the publisher counted from 1 again"))
    await listener.to_rest()
    assert house.notes() == ["one", "forged"]
    await listener.deliver(altered(envelope))
    assert (house.notes(), house.set_aside()) == (["one", "forged"], [])


async def test_a_waiting_message_whose_id_another_body_has_taken_meanwhile_is_parked(
    house: House, process: MakeProcess
) -> None:
    envelope = said("one", key="k")
    moods = Moods("one")
    listener = process(moods.asynchronous)
    await listener.deliver(envelope)
    with house.eyes.begin() as connection:  # as a delivery that came at the same moment
        connection.execute(
            house.tables.inbox.insert().values(
                consumer="listener",
                message_id=envelope.id,
                body_hash=body_hash(b"{}"),
                handled_at=house.clock.now(),
            )
        )
    moods.poison.clear()
    await listener.later()
    (row,) = house.set_aside()
    assert (row.error_code, row.body) == ("altered", envelope.body)
    assert house.notes() == []


async def test_messages_of_a_type_no_handler_wants_are_not_kept(
    house: House, process: MakeProcess
) -> None:
    class Unwanted(Event, topic="talk"):
        pass

    envelope = Envelope(new_id(), "talk", "k", "Unwanted", Unwanted().to_body())
    listener: Any = process(note)
    delivery = Delivered(envelope.to_headers(), envelope.body)
    await answer(listener.service.handling, "listener", delivery)
    assert delivery.became == ["acknowledged"]
    assert house.set_aside() == []
    assert isinstance(envelope.id, UUID)
    house.advance(LATER)
