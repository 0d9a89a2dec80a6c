"""What people decide: dead letters, parked keys, the archive, messages handlers failed on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from outbox_saga import Archive, DeadLetters, Decision
from outbox_saga.archive import Replay
from outbox_saga.errors import SeenChanged
from outbox_saga.testing.invariants import Violation
from outbox_saga.waiting_messages import WaitingMessage, WaitingMessages
from tests.crash.operation import Operation
from tests.crash.process import Process
from tests.crash.relaying import messages_wait, publish_all
from tests.crash.world import Facts, World

ADA = Decision("ada", "the stream takes it now")


# --- dead letters --------------------------------------------------------------------------------


async def some_are_dead(process: Process) -> None:
    """The broker refused two for ever, one of a key that has later ones; then it is mended."""
    publish_all(process, ("poison 1", "b"), ("2", "b"), ("poison 3", None), ("4", "b"))
    await process.relay()
    process.world.mended.append(mended=True)


async def some_are_overtaken(process: Process) -> None:
    """As `some_are_dead`; the first of the key is to give up its place."""
    publish_all(process, ("poison 1", "b"), ordered=False)
    publish_all(process, ("2", "b"), ("3", "b"))
    await process.relay()
    process.world.mended.append(mended=True)


async def replay_one(process: Process) -> None:
    """Each by itself, after a look at all there is to see."""
    letters = DeadLetters(process.database)
    with process.database.begin() as connection:
        found = letters.find(connection)
        letters.groups(connection)
        letters.plan(connection)
    for each in found:
        with process.database.begin() as connection:
            seen = letters.get(connection, each.id)
            letters.body(connection, seen)
        with process.database.begin() as connection:
            letters.replay(connection, seen, ADA)
    await process.relay()


async def replay_all(process: Process) -> None:
    """By a sweep on the sync engine."""
    DeadLetters(process.database).replay_all(ADA).run()
    await process.relay()


async def replay_all_async(process: Process) -> None:
    """By a sweep on the async engine."""
    await DeadLetters(process.database).replay_all(ADA).run_async()
    await process.relay()


async def discard_one(process: Process) -> None:
    """The first letter goes, then its key goes on; the others are replayed by whoever is next."""
    letters = DeadLetters(process.database)
    for each in await process.database.look(letters.find):
        if each.key is not None:
            await process.database.run(letters.discard, each, ADA)
    parked = await process.database.look(letters.parked, "b")
    if parked:
        await process.database.look(letters.waiting, "b")
        await process.database.run(letters.unpark, "b", parked, ADA)
    await process.relay()


async def discard_all(process: Process) -> None:
    """All letters go, and their keys go on."""
    DeadLetters(process.database).discard_all(ADA, unpark=True).run()
    await process.relay()


async def unpark(process: Process) -> None:
    """Later messages of the key go without the letter they wait for."""
    letters = DeadLetters(process.database)
    parked = await process.database.look(letters.parked, "b")
    if parked:
        await process.database.run(letters.unpark, "b", parked, ADA)
    await process.relay()


def gone(*words: str) -> Callable[[Facts, World], list[Violation]]:
    """I20: exactly these were discarded: on record, and never delivered."""

    def check(facts: Facts, _: World) -> list[Violation]:
        bodies = {b'{"word":"%s"}' % word.encode() for word in words}
        wanted = {id_ for id_, body in facts.committed.items() if body in bodies}
        noted = {
            a.subject.removeprefix("message ")
            for a in facts.messages.actions
            if a.action == "dead_letter.discard"
        }
        if noted != wanted:
            return [Violation("I20", "discarded", f"on record {noted}, wanted {wanted}")]
        return []

    return check


def unparked_by_record(facts: Facts, _: World) -> list[Violation]:
    """I20: later ones have overtaken the letter if, and only if, an unpark is on record."""
    words = list(dict.fromkeys(d.body for d in facts.delivered if d.key == "b"))
    overtaken = words.index(b'{"word":"poison 1"}') > 0
    times = facts.messages.count("key.unpark")
    if times == int(overtaken) and overtaken:
        return []
    return [Violation("I20", "key b", f"overtaken: {overtaken}, unparks on record: {times}")]


# --- the archive ---------------------------------------------------------------------------------


async def some_were_published(process: Process) -> None:
    """Five messages stand in the archive, some of one key."""
    await messages_wait(process)
    await process.relay()


def _replay(process: Process) -> Replay:
    return Archive(process.database).replay(ADA, batch=2)


async def archive_replay(process: Process) -> None:
    """Everything again, on the sync engine."""
    archive = Archive(process.database)
    with process.database.begin() as connection:
        archive.plan(connection)
    _replay(process).run()
    await process.relay()


async def archive_replay_async(process: Process) -> None:
    """Everything again, on the async engine."""
    archive = Archive(process.database)
    await process.database.look(archive.plan)
    await _replay(process).run_async()
    await process.relay()


def until_ended(run: Callable[[Process], Awaitable[None]]) -> Callable[[Process], Awaitable[None]]:
    """Whoever finds a replay that has not ended begins a new one."""

    async def again(process: Process) -> None:
        if not process.world.facts().messages.count("archive.replay.ended"):
            await run(process)

    return again


def all_again(facts: Facts, _: World) -> list[Violation]:
    """I20: a replay has ended, by the record, and each message was sent again."""
    seen = facts.messages
    found = []
    ended = seen.count("archive.replay.ended")
    if ended != 1 or not seen.count("archive.replay"):
        found.append(Violation("I20", "archive", f"ended {ended} times by the record"))
    for id_ in facts.committed:
        if seen.entered.get(id_, 0) < 2 or seen.replays.get(id_, 0) != seen.entered[id_] - 1:
            told = f"entered {seen.entered.get(id_)} times, the broker was told of a replay"
            found.append(
                Violation("I3", f"message {id_}", f"{told} {seen.replays.get(id_)} times")
            )
    return found


# --- what handlers failed on ---------------------------------------------------------------------


async def _dead(process: Process) -> list[WaitingMessage]:
    messages = WaitingMessages(process.database)
    found = await messages.list(state="dead")
    return [await messages.show(seen.position) for seen in found]


async def retry_waiting(process: Process) -> None:
    """What is dead gets one more attempt, since its handlers have been mended."""
    process.world.mended.append(mended=True)
    for seen in await _dead(process):
        try:
            await WaitingMessages(process.database).retry(seen, ADA)
        except SeenChanged:
            raise AssertionError("nobody else was there") from None
    await process.wait_out()


async def discard_waiting(process: Process) -> None:
    """What holds up a key goes for good; the rest is tried again."""
    process.world.mended.append(mended=True)
    for seen in await _dead(process):
        messages = WaitingMessages(process.database)
        if (seen.consumer, seen.error_code) == ("crash.grave-park", "handler_failed"):
            await messages.discard(seen, ADA)
        else:
            await messages.retry(seen, ADA)
    await process.wait_out()


def one_given_up(facts: Facts, _: World) -> list[Violation]:
    """I20: one discard on record, of what was never handled; and retries for the other."""
    given_up = [a for a in facts.messages.actions if a.action == "waiting.discard"]
    pairs = {(a.detail["consumer"], a.subject.removeprefix("message ")) for a in given_up}
    found = []
    if len(given_up) != 1 or pairs & set(facts.handled) or not pairs <= set(facts.inbox):
        told = f"on record {pairs}, handled {sorted(pairs & set(facts.handled))}"
        found.append(Violation("I20", "waiting.discard", told))
    if not facts.messages.count("waiting.retry"):
        found.append(Violation("I20", "waiting.retry", "handled, and no retry is on record"))
    return found


def retried_by_record(facts: Facts, _: World) -> list[Violation]:
    """I20: what was a dead letter and is handled was tried again by a person, on record.

    Perhaps more than once: a process that dies of it makes it one again.
    """
    retried = {
        (a.detail["consumer"], a.subject.removeprefix("message "))
        for a in facts.messages.actions
        if a.action == "waiting.retry"
    }
    first = dict(reversed(facts.handled))
    return [
        Violation("I20", f"message {id_}, consumer {consumer}", "handled, no retry on record")
        for consumer, id_ in first.items()
        if (consumer, id_) not in retried and consumer == "crash.grave-park"
    ]


OPERATING = (
    Operation("dead letter replay", some_are_dead, replay_one),
    Operation("dead letters replay all", some_are_dead, replay_all),
    Operation("dead letters replay all async", some_are_dead, replay_all_async, cancels=True),
    Operation(
        "dead letter discard",
        some_are_dead,
        discard_one,
        again=discard_one,
        check=gone("poison 1"),
        cancels=True,
    ),
    Operation(
        "dead letters discard all",
        some_are_dead,
        discard_all,
        again=discard_all,
        check=gone("poison 1", "poison 3"),
    ),
    Operation(
        "dead letter unpark",
        some_are_overtaken,
        unpark,
        again=unpark,
        check=unparked_by_record,
        cancels=True,
    ),
    Operation(
        "archive replay",
        some_were_published,
        archive_replay,
        archive=True,
        check=all_again,
        again=until_ended(archive_replay),
    ),
    Operation(
        "archive replay async",
        some_were_published,
        archive_replay_async,
        archive=True,
        check=all_again,
        again=until_ended(archive_replay_async),
        cancels=True,
    ),
)
