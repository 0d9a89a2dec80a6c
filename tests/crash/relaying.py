"""The relay: pages, refusals, messages whose time comes, late commits, a lease that is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.brokers.contract import Outcome, Refused, Settled
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import LeaseLost, Unpublishable
from outbox_saga.queries.outbox import write_messages
from outbox_saga.testing.invariants import Violation
from outbox_saga.unit_of_work import unit_of_work
from tests.crash.operation import Operation
from tests.crash.process import Process
from tests.crash.recording import RecordingPublisher
from tests.crash.shop import Said, Stray, intended, noted
from tests.crash.tables import OURS
from tests.crash.world import Facts, World


def publish_all(process: Process, *messages: tuple[str, str | None], **options: Any) -> None:
    """Words and keys, each in a transaction of its own.

    A word that begins with `stray` is of the topic whose keys go on without what is refused.
    """
    make = sessionmaker(process.database.engine, class_=Session)
    for word, key in messages:
        kind: type[Said | Stray] = Said
        if word.startswith("stray "):
            kind, word = Stray, word.removeprefix("stray ")  # noqa: PLW2901
        with unit_of_work(make, source="crash") as uow:
            statement, _ = noted(uow.publish, kind(word=word), key, **options)
            uow.session.execute(statement)


async def messages_wait(process: Process) -> None:
    """Five messages wait in the outbox, three of them of one key."""
    publish_all(process, ("0", "one"), ("1", "two"), ("2", "one"), ("3", None), ("4", "one"))


async def some_are_refused(process: Process) -> None:
    """Some the broker takes later, some never, and one finds it down."""
    publish_all(process, ("later 1", "a"), ("2", "a"), ("poison 3", "b"), ("4", "b"))
    publish_all(process, ("stray poison 5", "c"), ordered=False)
    publish_all(process, ("stray 6", "c"), ("poison 7", None), ("down 8", "d"), ("9", "a"))


async def some_are_delayed(process: Process) -> None:
    """Some wait for their time, of a key that has others, and of none."""
    publish_all(process, ("now", "one"))
    publish_all(process, ("second", "one"), ("third", "one"), ordered=False, delay=90.0)
    publish_all(process, ("fourth", None), ("first", "one"), ordered=False, delay=30.0)


async def relay(process: Process) -> None:
    """They are published, page by page."""
    await process.relay()


async def relay_when_due(process: Process) -> None:
    """What may leave does, then their time comes."""
    one = process.new_relay()
    while await one.run_once():
        pass
    await one.store.lease.release()
    process.let_time_pass()
    await process.relay()


async def until_empty(process: Process) -> None:
    """As `relay --once` does it, with the service's own program."""
    program = process.service.relay_program(page_rows=2)
    program.publisher = process.publisher()
    process.keep(program)
    await program.run_until_empty()


def delayed_in_order(facts: Facts, _: World) -> list[Violation]:
    """I4: of one key, those that were delayed enter in the order in which they are due."""
    words = [d.body for d in facts.delivered if d.key == "one"]
    first = list(dict.fromkeys(words))
    wanted = [b'{"word":"%s"}' % w for w in (b"now", b"first", b"second", b"third")]
    return [] if first == wanted else [Violation("I4", "key one", f"delivered {first}")]


# --- a lease that is lost ------------------------------------------------------------------------


class Impostor:
    """A broker that refuses for ever, and meanwhile lets another relay take over and publish.

    It answers once the other relay's broker has stored the first message.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.stored, self.answered = asyncio.Event(), asyncio.Event()
        self.other: asyncio.Task[int] | None = None

    async def open(self) -> None:
        pass

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        if self.other is None:
            self._process.let_time_pass()
            successor = self._process.new_relay(Slow(self._process, self))
            self.other = asyncio.create_task(successor.run_once())
            stored = asyncio.create_task(self.stored.wait())
            await asyncio.wait({stored, self.other}, return_when=asyncio.FIRST_COMPLETED)
            stored.cancel()
        refused = Refused(Unpublishable("it says so", code="impostor"))
        return [refused] * len(envelopes)

    async def close(self) -> None:
        pass


class Slow(RecordingPublisher):
    """It stores what it gets, and answers when the impostor's relay has done what it could."""

    def __init__(self, process: Process, impostor: Impostor) -> None:
        super().__init__(process.world, process.points)
        self._impostor = impostor

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        outcomes = await super().publish(envelopes, settled)
        self._impostor.stored.set()
        await self._impostor.answered.wait()
        return outcomes


async def hand_over(process: Process) -> None:
    """A relay's lease runs out while it publishes; another one publishes the same page."""
    impostor = Impostor(process)
    stale = process.new_relay(impostor)
    try:
        await stale.run_once()
    except LeaseLost:
        pass
    finally:
        impostor.answered.set()
        if impostor.other is not None:
            await impostor.other
    await process.relay()


def nobody_died(facts: Facts, _: World) -> list[Violation]:
    """I6: what the stale relay was told has no consequence."""
    times = facts.messages.count("dead_letter.replay")
    return [Violation("I6", "dead letters", f"a stale relay made {times}")] if times else []


# --- a commit that is late -----------------------------------------------------------------------


async def late_commit(process: Process) -> None:
    """A transaction wrote its message and commits after others' have been published."""
    one = process.new_relay()
    slow = Said(word="slow")
    envelope = seal(slow, key="slow", source="crash")
    with process.database.engine.connect() as late:
        late.execute(intended(str(envelope.id), "slow", slow.to_body()))
        write_messages(late, OURS, [envelope])
        for word in ("1", "2", "3"):
            publish_all(process, (word, "fast"))
            await one.run_once()
        late.commit()
    publish_all(process, ("4", "fast"))
    for _ in range(6):
        await one.run_once()
    if process.world.pending():
        raise TimeoutError("the relay did not see what committed late")
    await one.store.lease.release()


_FIRST = (
    Operation("relay to a broker", messages_wait, relay, cancels=True),
    Operation("relay to own handlers", messages_wait, relay, broker="local", cancels=True),
)
RELAYING = (
    *_FIRST,
    Operation("relay until empty", messages_wait, until_empty, cancels=True),
    Operation("relay and archive", messages_wait, relay, archive=True, cancels=True),
    Operation("relay refusals", some_are_refused, relay, archive=True, cancels=True),
    Operation(
        "relay delayed", some_are_delayed, relay_when_due, check=delayed_in_order, cancels=True
    ),
    Operation("relay hand-over", messages_wait, hand_over, check=nobody_died, cancels=True),
    Operation(
        "relay late commit",
        messages_wait,
        late_commit,
        databases=("postgres18", "mariadb"),  # SQLite has one writer
    ),
)
FIRST = _FIRST
__all__ = ["FIRST", "RELAYING", "messages_wait", "publish_all", "relay"]
