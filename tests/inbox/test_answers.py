"""What handlers return, and what goes on from message to message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from outbox_saga import HandlerContext, Success, SyncHandlerContext
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import ConfigurationError
from outbox_saga.handlers import Handlers
from tests.inbox.processes import MakeProcess, note, note_in_thread, said
from tests.relay.house import House, Said, till

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def sent(house: House) -> list[Envelope]:
    outbox = house.tables.outbox
    return [
        Envelope.from_row(r.id, r.topic, r.key, r.headers, r.body)
        for r in house.rows(outbox, outbox.c.position)
    ]


def words(house: House) -> list[tuple[str, str | None]]:
    return [(Said.from_body(e.body).word, e.key) for e in sent(house)]


A, B = Said(word="a"), Said(word="b")
ANSWERS: dict[str, tuple[Callable[[], Any], list[tuple[str, str | None]]]] = {
    "nothing": (lambda: None, []),
    "Success": (lambda: Success({"any": "thing"}), []),
    "Success without data": (lambda: Success(None), []),
    "Success of a message": (lambda: Success(A), [("a", None)]),
    "Success of a message with its key": (lambda: Success((A, "k")), [("a", "k")]),
    "Success of a list": (lambda: Success([(A, "k"), B]), [("a", "k"), ("b", None)]),
    "a message": (lambda: A, [("a", None)]),
    "a message with its key": (lambda: (A, "k"), [("a", "k")]),
    "a message with no key": (lambda: (A, None), [("a", None)]),
    "a list": (lambda: [A, B], [("a", None), ("b", None)]),
    "a pair of messages": (lambda: (A, B), [("a", None), ("b", None)]),
    "both kinds": (lambda: [(A, "k"), B], [("a", "k"), ("b", None)]),
    "an iterator": (lambda: iter([(A, "k"), (B, "k")]), [("a", "k"), ("b", "k")]),
    "no message at all": (list, []),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_messages_that_a_handler_returns_leave_with_its_effect(
    house: House, process: MakeProcess, answer: str
) -> None:
    make, expected = ANSWERS[answer]

    async def asynchronous(handle: HandlerContext[Said]) -> Any:
        await note(handle)
        return make()

    def plain(handle: SyncHandlerContext[Said]) -> Any:
        note_in_thread(handle)
        return make()

    for handler in (asynchronous, plain):
        house.empty()
        await process(handler).deliver(said("one"))
        assert words(house) == expected
        assert house.notes() == ["one"]


async def test_a_generator_works_in_the_transaction_and_yields_what_leaves(
    house: House, process: MakeProcess
) -> None:
    def generates(handle: SyncHandlerContext[Said]) -> Iterator[tuple[Said, str]]:
        note_in_thread(handle)
        yield A, "k"
        handle.session.execute(till.insert().values(note="between"))
        yield B, "k"

    await process(generates).deliver(said("one"))
    assert words(house) == [("a", "k"), ("b", "k")]
    assert house.notes() == ["one", "between"]


BAD: dict[str, Callable[[], Any]] = {
    "text": lambda: "done",
    "bytes": lambda: b"done",
    "a number": lambda: 7,
    "a mapping": lambda: {"a": A},
    "a mapping in a list": lambda: [A, {}],
    "None in a list": lambda: [A, None],
    "a key that is no text": lambda: [(A, 7)],
    "three in a row": lambda: [(A, "k", "l")],
    "an envelope": lambda: seal(A),
    "an envelope in Success": lambda: Success(seal(A)),
    "text in Success": lambda: Success("done"),
    "Success in Success": lambda: Success(Success(A)),
}


@pytest.mark.databases("sqlite", "postgres18")
@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
async def test_anything_else_is_an_error_and_nothing_stays(
    house: House, process: MakeProcess, answer: Callable[[], Any]
) -> None:
    async def asynchronous(handle: HandlerContext[Said]) -> Any:
        await note(handle)
        return answer()

    await process(asynchronous).deliver(said("one"))
    (row,) = house.set_aside()
    assert row.error_code == "handler_answer"
    assert "return None, Success, Failure, a message" in row.error
    assert (house.notes(), house.waiting()) == ([], [])


def test_an_async_generator_is_refused_when_it_is_registered() -> None:
    async def generates(handle: Any) -> AsyncIterator[Said]:
        yield A

    with pytest.raises(ConfigurationError, match="return a list of messages"):
        Handlers("shop").add(Said, generates)


async def test_conversation_cause_and_trace_go_on_with_all_that_a_handler_sends(
    house: House, process: MakeProcess
) -> None:
    async def answers(handle: HandlerContext[Said]) -> Said:
        handle.publish(A)
        handle.uow.publish(A)
        handle.publish(A, headers={"Traceparent": "own"})
        return B

    envelope = seal(
        Said(word="one"),
        correlation_id="the talk",
        headers={"traceparent": TRACE, "tracestate": "a=1", "x-tenant": "7"},
    )
    await process(answers).deliver(envelope)
    found = sent(house)
    assert {(e.correlation_id, e.causation_id, e.source) for e in found} == {
        ("the talk", str(envelope.id), "shop")
    }
    inherited = {"traceparent": TRACE, "tracestate": "a=1"}
    own = {"traceparent": "own", "tracestate": "a=1"}
    assert [e.headers for e in found] == [inherited, inherited, own, inherited]


@pytest.mark.parametrize("parent", ["garbage", "00-\x00", TRACE.upper(), ""])
async def test_a_trace_of_others_that_is_none_goes_no_further_and_fails_nothing(
    house: House, process: MakeProcess, parent: str
) -> None:
    async def answers(handle: HandlerContext[Said]) -> Said:
        return A

    envelope = said("one")
    object.__setattr__(envelope, "headers", {"traceparent": parent, "tracestate": "a=1"})
    await process(answers).deliver(envelope)
    (found,) = sent(house)
    assert found.headers == {}


async def test_a_message_without_a_conversation_begins_one(
    house: House, process: MakeProcess
) -> None:
    async def answers(handle: HandlerContext[Said]) -> Said:
        return A

    envelope = said("one")
    object.__setattr__(envelope, "correlation_id", "")  # as another toolkit's CloudEvent
    await process(answers).deliver(envelope)
    assert sent(house)[0].correlation_id == str(envelope.id)


async def test_a_retried_message_sends_what_it_sends_once(
    house: House, process: MakeProcess
) -> None:
    fails = [True]

    async def answers(handle: HandlerContext[Said]) -> list[Said]:
        handle.publish(A)
        if fails and fails.pop():
            raise LookupError
        return [B]

    listener = process(answers)
    await listener.deliver(said("one"))
    assert words(house) == []
    await listener.later()
    assert words(house) == [("a", None), ("b", None)]
