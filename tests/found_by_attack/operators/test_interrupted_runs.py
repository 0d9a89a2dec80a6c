"""A command over several that was killed in the middle is simply started again."""

from __future__ import annotations

import pytest

from outbox_saga.decisions import Decision
from outbox_saga.waiting_messages import WaitingMessages
from tests.cli.conftest import Command
from tests.inbox.processes import Moods, processes, said
from tests.operating.yard import audited, die, letter_of, replay
from tests.relay.house import House

pytestmark = pytest.mark.databases("sqlite", "postgres18")

WHY = ("--reason", "mended", "--yes")


async def test_letters_that_are_gone_do_not_keep_the_others_from_being_replayed(
    house: House, command: Command
) -> None:
    house.say("a", "b", "c")
    await die(house, "a", "b", "c")
    ids = [str(letter_of(house, word).id) for word in "abc"]
    replay(house, "a")

    run = await command("dead-letter", "replay", *ids, "-d", house.url, *WHY)

    assert run.exit_code == 1, run.output
    assert run.stdout.splitlines() == ["replayed\t2", "changed meanwhile, left alone\t1"]
    assert house.dead() == []
    assert len(audited(house)) == 3


@pytest.mark.parametrize("verb", ["retry", "discard"])
async def test_messages_that_are_gone_do_not_keep_the_others_from_an_action(
    house: House, command: Command, verb: str
) -> None:
    async with processes(house) as process:
        await process(Moods("a", "b", "c").asynchronous).deliver(*map(said, "abc"))
    places = [row.position for row in house.set_aside()]
    messages = WaitingMessages(house.database)
    await messages.discard(await messages.show(places[0]), Decision("ada", "a test order"))

    why = WHY[:2] if verb == "retry" else WHY
    run = await command("waiting", verb, *places, "-d", house.url, *why)

    assert run.exit_code == 1, run.output
    assert [action for _, action in audited(house)] == [
        "waiting.discard",
        *[f"waiting.{verb}"] * 2,
    ]
