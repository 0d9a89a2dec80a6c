"""What people do with waiting messages: look, try again, discard; by Python and by command."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from outbox_saga import HandlerContext, SyncHandlerContext
from outbox_saga.attempts import CLAIM_LEASE
from outbox_saga.decisions import Decision
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import DecisionRefused, SeenChanged
from outbox_saga.ids import new_id
from outbox_saga.queries import claims, waiting
from outbox_saga.waiting_messages import WaitingMessages
from outbox_saga_relay.cli import main
from tests.inbox.processes import LATER, MakeProcess, Moods, Process, said
from tests.relay.house import PATIENCE, House, Said

ADA = Decision("ada", "mended")


@pytest.fixture
def messages(house: House) -> WaitingMessages:
    return WaitingMessages(house.database)


async def test_a_listing_says_what_waits_why_and_for_what(
    house: House, process: MakeProcess, messages: WaitingMessages
) -> None:
    listener = process(Moods("one", "dead").asynchronous)
    await listener.deliver(said("dead", key="d"))
    await listener.later(times=3)
    await listener.deliver(said("one", key="k"), said("two", key="k"))

    found = await messages.list()
    assert [(m.state, m.key, m.attempts, m.error_code, m.failed_at is None) for m in found] == [
        ("dead", "d", 3, "handler_failed", False),
        ("due", "k", 1, "handler_failed", False),
        ("behind", "k", 0, "behind", True),
    ]
    assert [m.until is None for m in found] == [True, False, True]
    assert all(m.body is None for m in found)
    for state in ("dead", "due", "behind"):
        assert [m.state for m in await messages.list(state=state)] == [state]
    assert len(await messages.list(key="k")) == 2
    assert len(await messages.list(consumer="nobody")) == 0
    status = await asyncio.to_thread(CliRunner().invoke, main, ["status", "-d", house.url])
    assert f"{found[0].consumer}\t1\t1\t1" in status.stdout.splitlines()
    first = (await messages.list(limit=1))[0]
    assert await messages.list(after=first.position, limit=1) == found[1:2]
    one = await messages.show(found[1].position)
    assert json.loads(one.body or b"") == {"word": "one"}


async def test_a_dead_letter_that_is_tried_again_gets_one_attempt_and_its_key_goes_on(
    house: House, process: MakeProcess, messages: WaitingMessages
) -> None:
    moods = Moods("one")
    listener = process(moods.asynchronous)
    await listener.deliver(said("one", key="k"), said("two", key="k"))
    await listener.later(times=4)
    (dead,) = await messages.list(state="dead")
    await messages.retry(dead, ADA)
    await listener.to_rest()
    (dead,) = await messages.list(state="dead")
    assert (dead.attempts, len(moods.asked)) == (4, 4)
    moods.poison.clear()
    await messages.retry(dead, ADA)
    await listener.to_rest()
    assert house.notes() == ["one", "two"]


async def test_what_stands_behind_another_keeps_its_turn_when_it_is_tried_again(
    house: House, process: MakeProcess, messages: WaitingMessages
) -> None:
    moods = Moods("one")
    listener = process(moods.asynchronous)
    await listener.deliver(said("one", key="k"), said("two", key="k"))
    (behind,) = await messages.list(state="behind")
    await messages.retry(behind, ADA)
    await listener.to_rest()
    assert moods.asked == ["one"]
    moods.poison.clear()
    await listener.later()
    assert house.notes() == ["one", "two"]


async def test_a_discarded_message_counts_as_handled_and_its_key_goes_on(
    house: House, process: MakeProcess, messages: WaitingMessages
) -> None:
    listener, envelope = process(Moods("one").asynchronous), said("one", key="k")
    await listener.deliver(envelope, said("two", key="k"))
    (due,) = await messages.list(state="due")
    await messages.discard(due, ADA)
    await listener.to_rest()
    await listener.deliver(envelope)
    assert house.notes() == ["two"]
    assert house.set_aside() == []


@pytest.mark.databases("postgres18", "mariadb")
@pytest.mark.parametrize("action", ["retry", "discard"])
async def test_a_retry_or_discard_of_a_pessimistic_handler_out_of_time_heeds_no_old_claim(
    house: House, process: MakeProcess, messages: WaitingMessages, action: str
) -> None:
    calls: list[threading.Event] = []

    def hangs(handle: SyncHandlerContext[Said]) -> None:
        calls.append(threading.Event())
        if len(calls) <= 3:
            calls[-1].wait(3 * PATIENCE)

    listener, out = process(hangs, pessimistic=True, timeout=0.1), asyncio.Event()
    envelope = said("one", key="k")
    try:
        await listener.deliver(envelope)
        for attempt in (1, 2, 3):
            listener.service.handling._attempts.watch.when_out(("listener", envelope.id), out.set)
            calls[-1].set()
            await asyncio.wait_for(out.wait(), PATIENCE)
            out.clear()
            house.advance(CLAIM_LEASE + 1)
            if attempt < 3:
                await listener.later()
            assert len(calls) == min(attempt + 1, 3)
    finally:
        for call in calls:
            call.set()
    (dead,) = await messages.list(state="dead")
    assert (dead.attempts, dead.error_code) == (3, "handler_timeout")
    await getattr(messages, action)(dead, ADA)
    await listener.to_rest()
    assert len(calls) == (4 if action == "retry" else 3)
    assert (house.set_aside(), house.rows(house.tables.inbox_claim)) == ([], [])


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_pessimistic_handler_whose_attempts_all_died_is_tried_again(
    house: House, process: MakeProcess, messages: WaitingMessages
) -> None:
    """Whoever takes its lease over has counted a death; its claim does not count it once more."""
    moods = Moods("one")
    listener, envelope = process(moods.asynchronous, pessimistic=True), said("one", key="k")
    await listener.deliver(envelope)
    for _ in range(2):
        await die_while_trying(listener, envelope)
    (dead,) = await messages.list(state="dead")
    assert (dead.attempts, dead.error_code) == (3, "process_died")
    for _ in range(2):  # and the next retry's process dies, too
        await messages.retry(dead, ADA)
        await die_while_trying(listener, envelope, later=False)
        (dead,) = await messages.list(state="dead")
    moods.poison.clear()
    await messages.retry(dead, ADA)
    await listener.to_rest()
    assert house.notes() == ["one"]
    assert (house.set_aside(), house.rows(house.tables.inbox_claim)) == ([], [])


async def die_while_trying(listener: Process, envelope: Envelope, *, later: bool = True) -> None:
    """A process leases it, claims it, and is not heard of again; another one notices."""
    house, database = listener.house, listener.service.database
    if later:
        house.advance(LATER)
    leased = await database.run(
        waiting.lease_due, database.tables, database.clock, new_id(), 30.0, ["listener"], 1
    )
    assert [one.message_id for one in leased] == [envelope.id]
    taken = await database.run(
        claims.take,
        database.tables,
        database.clock,
        new_id(),
        CLAIM_LEASE,
        "listener",
        envelope.id,
        envelope.body,
        key=envelope.key,
        look_for_waiting=False,
    )
    assert taken == ("new", 1)
    house.advance(CLAIM_LEASE + 1)
    assert await listener.room.run_once() == 1


@pytest.mark.parametrize("action", ["retry", "discard"])
async def test_nothing_is_done_with_a_message_that_is_not_as_it_was_seen(
    house: House, process: MakeProcess, messages: WaitingMessages, action: str
) -> None:
    listener = process(Moods("one").asynchronous)
    await listener.deliver(said("one", key="k"))
    (seen,) = await messages.list()
    await listener.later()  # another attempt
    with pytest.raises(SeenChanged, match="look again"):
        await getattr(messages, action)(seen, ADA)
    (seen,) = await messages.list()
    await messages.discard(seen, ADA)
    with pytest.raises(SeenChanged):
        await getattr(messages, action)(seen, ADA)
    with pytest.raises(SeenChanged, match="list them again"):
        await messages.show(seen.position)


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_message_that_is_being_handled_is_left_alone(
    house: House, process: MakeProcess, messages: WaitingMessages
) -> None:
    inside, go, fails = asyncio.Event(), asyncio.Event(), [True]

    async def slow(handle: HandlerContext[Said]) -> None:
        if fails and fails.pop():
            raise LookupError
        inside.set()
        await go.wait()

    listener = process(slow)
    await listener.deliver(said("one", key="k"))
    house.advance(LATER)
    running = asyncio.create_task(listener.room.run_once())
    await asyncio.wait_for(inside.wait(), PATIENCE)
    (seen,) = await messages.list()
    assert seen.being_handled
    with pytest.raises(SeenChanged):
        await messages.discard(seen, ADA)
    go.set()
    await asyncio.wait_for(running, PATIENCE)
    assert await messages.list() == []


async def test_who_did_what_and_why_is_on_record_with_what_it_did(
    house: House, process: MakeProcess, messages: WaitingMessages
) -> None:
    await process(Moods("one").asynchronous).deliver(said("one", key="k"))
    (seen,) = await messages.list()
    await messages.retry(seen, ADA)
    with pytest.raises(DecisionRefused):
        await messages.discard(seen, Decision("eve", " "))
    with pytest.raises(SeenChanged):
        await messages.discard(replace(seen, attempts=7), Decision("eve", "of old"))
    (seen,) = await messages.list()
    await messages.discard(seen, Decision("bob", "a test order"))
    assert await messages.list() == []
    actions = house.rows(house.tables.operator_action, house.tables.operator_action.c.at)
    assert [(a.operator, a.action, a.reason) for a in actions] == [
        ("ada", "waiting.retry", "mended"),
        ("bob", "waiting.discard", "a test order"),
    ]
    assert actions[1].subject == f"message {seen.message_id}"
    assert json.loads(actions[1].detail) == {
        "consumer": "listener",
        "position": seen.position,
        "key": "k",
        "state": "due",
        "attempts": 1,
        "error_code": "handler_failed",
    }


# --- by command ----------------------------------------------------------------------------------


def _run(house: House, *arguments: str) -> Result:
    command = [*arguments[:2], "--database-url", house.url, *arguments[2:]]
    return CliRunner().invoke(main, command, prog_name="outbox-saga")


async def test_the_commands_list_show_retry_and_discard(
    house: House, process: MakeProcess
) -> None:
    moods = Moods("hush\x1b[2J", "two")
    listener = process(moods.asynchronous)
    await listener.deliver(said("hush\x1b[2J", key="k"), said("two", key="l"))

    def run(*arguments: str) -> Any:
        return asyncio.to_thread(_run, house, *arguments)

    listed = await run("waiting", "list", "--json")
    first, second = json.loads(listed.stdout)["messages"]
    assert (first["key"], first["state"], first["attempts"]) == ("k", "due", 1)
    plain = (await run("waiting", "list", "--key", "k")).stdout
    assert plain.split("\t")[:2] == [str(first["position"]), "listener"]
    assert "hush" not in listed.stdout + plain

    place, other = str(first["position"]), str(second["position"])
    shown = (await run("waiting", "show", place)).stdout
    assert "LookupError" in shown
    assert '"word"' not in shown
    with_body = (await run("waiting", "show", place, "--body")).stdout
    assert '{"word":"hush' in with_body
    assert "\x1b" not in shown + with_body

    assert (await run("waiting", "retry", place)).exit_code == 2  # no reason
    moods.poison.clear()
    assert (await run("waiting", "retry", place, "--reason", "mended")).exit_code == 0
    await listener.to_rest()
    refused = await run("waiting", "discard", other, "--reason", "obsolete")
    assert refused.exit_code == 1  # not confirmed
    done = await run("waiting", "discard", other, "--reason", "obsolete", "--yes")
    assert done.exit_code == 0, done.output
    gone = await run("waiting", "show", other)
    assert gone.exit_code == 1
    assert "list them again" in gone.output
    assert house.notes() == ["hush\x1b[2J"]
