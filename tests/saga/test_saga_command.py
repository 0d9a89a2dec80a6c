"""`outbox-saga saga`: sagas from the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

from outbox_saga import Event, Saga, Service, nothing_to_undo
from outbox_saga.ids import new_id
from outbox_saga.queries import leases
from outbox_saga.queries.leases import Known
from outbox_saga_relay import saga_actions, saga_command
from outbox_saga_relay.cli import main
from tests.saga.shop import Shop
from tests.saga.test_operating import audit, shop, stuck, to_the_end

__all__ = ["shop"]  # the fixture

pytestmark = pytest.mark.databases("sqlite", "postgres18")

Command = Callable[..., Awaitable[Result]]


@pytest.fixture
def command(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `outbox-saga saga …` in a thread of this process; any SERVICE is the shop."""
    monkeypatch.setenv("LOGNAME", "grace")
    monkeypatch.delenv("OUTBOX_SAGA_OPERATOR", raising=False)
    monkeypatch.setattr(saga_actions, "load_service", lambda _: shop.restarted())

    async def run(*arguments: object) -> Result:
        words = ["saga", *(str(a) for a in arguments)]
        return await asyncio.to_thread(CliRunner().invoke, main, words, prog_name="outbox-saga")

    return run


async def test_a_stuck_saga_is_found_looked_at_planned_and_helped(
    shop: Shop, command: Command
) -> None:
    seen = await stuck(shop, undo=True)
    database = ("-d", shop.url)

    listed = await command("list", *database, "--state", "stuck")
    assert listed.stdout.splitlines() == [
        "\t".join(
            (
                str(seen.id), "fulfil", "1", "order:1", "stuck", str(seen.revision),
                "reserve: the shelf is gone",
            )
        )
    ]  # fmt: skip
    shown = json.loads((await command("show", *database, seen.id, "--json")).stdout)
    assert shown["steps"]["reserve"]["phase"] == "stuck"
    assert shown["history"][-1]["transition"] == "FAILED"
    assert "data" not in shown
    plain = await command("show", *database, seen.id, "--data")
    assert "order_id" in plain.stdout

    planned = await command("retry", "shop:service", seen.id, "reserve", "--plan")
    assert planned.stdout.splitlines() == [
        f"at\trevision\t\t{seen.revision}",
        "history\tCOMPENSATING_STEP\treserve\tagain, by grace",
        "then\trun\treserve\tundo",
    ]
    assert (await shop.instance(seen.id), await audit(shop)) == (seen, [])

    done = await command(
        "retry", "shop:service", seen.id, "reserve", "--reason", "the shelf is back",
        "--revision", seen.revision,
    )  # fmt: skip
    assert (done.exit_code, done.stderr) == (0, f"{seen.id}: retry\n")
    assert await to_the_end(shop, seen.id) == "compensated"
    (noted,) = await audit(shop)
    assert (noted.operator, noted.action, noted.reason) == (
        "grace",
        "saga.retry",
        "the shelf is back",
    )


async def test_every_decision_has_a_command(shop: Shop, command: Command) -> None:
    seen = await stuck(shop, undo=False)
    why = ("--reason", "told by telephone", "--revision", seen.revision)
    refused = await command("mark-done", "s:s", seen.id, "charge", *why, "--data", "[1]")
    assert (refused.exit_code, "no JSON object" in refused.stderr) == (2, True)
    refused = await command("cancel", "s:s", uuid4(), *why)
    assert (refused.exit_code, "there is no saga" in refused.stderr) == (1, True)
    refused = await command("skip", "s:s", seen.id, "charge", "--revision", seen.revision)
    assert (refused.exit_code, "--reason" in refused.stderr) == (2, True)
    assert await audit(shop) == []

    for words in (("resume",), ("cancel",)):
        at = (await shop.instance(seen.id)).revision
        done = await command(words[0], "s:s", seen.id, *why[:2], "--revision", at)
        assert done.exit_code == 0, done.output
    assert [noted.action for noted in await audit(shop)] == ["saga.cancel", "saga.resume"]
    assert await to_the_end(shop, seen.id) == "compensated"


async def test_a_decision_is_about_the_revision_that_was_seen(
    shop: Shop, command: Command
) -> None:
    seen = await stuck(shop, undo=True)
    why = ("--reason", "told by telephone")
    refused = await command("skip", "s:s", seen.id, "reserve", *why)
    assert (refused.exit_code, "`outbox-saga saga show`" in refused.stderr) == (2, True)
    done = await command("retry", "s:s", seen.id, "reserve", *why, "--revision", seen.revision)
    assert done.exit_code == 0, done.output

    for also in (why, ("--plan",)):
        late = await command("skip", "s:s", seen.id, "reserve", *also, "--revision", seen.revision)
        assert (late.exit_code, "look again" in late.stderr) == (1, True)

    assert [noted.action for noted in await audit(shop)] == ["saga.retry"]


async def test_a_plan_says_when_what_follows_depends_on_the_process_that_has_it(
    shop: Shop, command: Command
) -> None:
    id_ = await shop.start()
    database = shop.service.database
    known = Known(["fulfil"])
    await database.run(leases.claim, database.tables, database.clock, new_id(), 600.0, known, 1)

    planned = await command("cancel", "s:s", id_, "--plan")

    assert [line.split("\t")[:2] for line in planned.stdout.splitlines()] == [
        ["at", "revision"],
        ["history", "COMPENSATION_STARTED"],
        ["then", "leased"],
    ]


async def test_data_that_a_step_would_have_returned_is_told_as_json(
    shop: Shop, command: Command
) -> None:
    seen = await stuck(shop, undo=False)
    done = await command(
        "mark-done", "s:s", seen.id, "charge", "--reason", "receipt 17", "--data",
        '{"charge": "17"}', "--revision", seen.revision,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert await to_the_end(shop, seen.id) == "completed"
    assert (await shop.instance(seen.id)).state.data["charge"] == "17"


class Data(BaseModel):
    n: int = 0


class Paid(Event, topic="payments"):
    n: int


async def act(step: Any) -> None: ...


async def test_definitions_are_drawn_and_looked_over(
    shop: Shop, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = (
        Saga("sell", data=Data)
        .step("reserve", act, compensation=act)
        .wait_for("paid", Paid, timeout=60)
        .step("ship", act, pivot=True, compensation=nothing_to_undo)
        .step("mail", act, when=lambda data: data.n > 1, compensation=act, timeout=600)
    )
    service = Service("seller", database=shop.url, sagas=[saga])
    monkeypatch.setattr(saga_command, "load_service", lambda _: service)

    drawn = await command("graph", "s:s")
    assert drawn.stdout.splitlines() == [
        "---",
        "title: sell version 1",
        "---",
        "flowchart TD",
        '    s0["reserve<br/>local, undone by act"]',
        '    s1>"paid<br/>waits for Paid"]',
        '    s2["ship<br/>local, pivot"]',
        '    s3["mail<br/>local, undone by act"]',
        "    s0 --> s1",
        "    s1 --> s2",
        "    s2 -. when .-> s3",
        "    classDef beyond stroke-dasharray: 5 5",
        "    class s3 beyond",
    ]
    looked = await command("lint", "s:s")
    assert looked.exit_code == 1
    told = [line.split("\t")[1:] for line in looked.stdout.splitlines()]
    assert [step for step, _ in told] == ["mail", "mail"]
    assert "taken over no earlier" in told[0][1]
    assert "never runs" in told[1][1]
    await service.close()


async def test_a_definition_with_nothing_to_remark_is_told_by_the_exit_code(
    shop: Shop, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga_command, "load_service", lambda _: shop.service)
    looked = await command("lint", "s:s")
    assert (looked.exit_code, looked.stdout) == (0, "")
