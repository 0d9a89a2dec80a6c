"""The inbox: handle once, wait, be given up, come unreadable or altered, and be answered."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable

from outbox_saga.envelopes import seal
from outbox_saga.messages import Message
from outbox_saga.testing.invariants import Violation
from tests.crash import operating
from tests.crash.deliveries import arriving
from tests.crash.operation import Operation
from tests.crash.process import Process
from tests.crash.shop import Asked, Grave, Said, Told
from tests.crash.world import Facts, World


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
graves_arrive = arrivals(Grave(word="1 hard"), Grave(word="2"))
easy_graves_arrive = arrivals(Grave(word="1"), Grave(word="2"))


async def messages_wait_for_their_handlers(process: Process) -> None:
    """Two messages of a key were delivered, and the handlers failed on the first one."""
    await hard_to_understand(process)
    await process.handle()


async def dead_letters_of_consumers(process: Process) -> None:
    """Two were delivered; of both consumers the first one is a dead letter."""
    await graves_arrive(process)
    await process.handle()


async def odd_ones_arrive(process: Process) -> None:
    """One that can be read, one under its id with another body, and one whose headers cannot."""
    good = arriving(seal(Said(word="odd 1"), key="far", source="elsewhere"))
    other = base64.b64encode(Said(word="odd 2").to_body()).decode()
    unread = arriving(seal(Said(word="odd 3"), key="far", source="elsewhere"))
    process.world.arrivals.append(**good)
    process.world.arrivals.append(**{**good, "body": other, "odd": True})
    process.world.arrivals.append(**unread, odd=True, unreadable=True)


async def try_again(process: Process) -> None:
    """Time passes, and what waits is tried until it is handled."""
    await process.wait_out()


async def handle(process: Process) -> None:
    """An async and a plain handler take each of them, and answer."""
    await process.handle()


def all_kept(facts: Facts, _: World) -> list[Violation]:
    """I3: each odd one was kept for each consumer, and given up by a person, on record."""
    given_up = facts.messages.count("waiting.discard")
    if given_up != 4:
        return [Violation("I3", "odd messages", f"{given_up} of 4 were kept and given up")]
    return []


FIRST = (
    Operation("handle", messages_arrive, handle, cancels=True),
    Operation("fail and store", hard_to_understand, handle, cancels=True),
    Operation("retry of waiting", messages_wait_for_their_handlers, try_again, cancels=True),
    Operation("pessimistic", questions_arrive, handle, cancels=True),
)
HANDLING = (
    *FIRST,
    Operation("return messages", easy_graves_arrive, handle, cancels=True),
    Operation("consume", messages_arrive, handle, consumes=True, cancels=True),
    Operation("consume what fails", hard_to_understand, handle, consumes=True, cancels=True),
    Operation(
        "consume what is odd", odd_ones_arrive, handle, consumes=True, check=all_kept, cancels=True
    ),
    Operation("fail for good", graves_arrive, handle, cancels=True),
    Operation(
        "waiting retry",
        dead_letters_of_consumers,
        operating.retry_waiting,
        again=operating.retry_waiting,
        check=operating.retried_by_record,
        cancels=True,
    ),
    Operation(
        "waiting discard",
        dead_letters_of_consumers,
        operating.discard_waiting,
        again=operating.discard_waiting,
        check=operating.one_given_up,
        cancels=True,
    ),
)
