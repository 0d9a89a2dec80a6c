"""`outbox-saga dead-letter`: what people see, what programs read, and the exit codes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import sqlalchemy as sa

from tests.cli.conftest import Command
from tests.cli.terminal import Terminal
from tests.operating.yard import audited, die, letter_of
from tests.relay.house import House, word_of

pytestmark = pytest.mark.databases("sqlite", "postgres18")

WHY = ("--reason", "the stream takes 2 MiB now")


def of(house: House) -> tuple[str, str]:
    return ("-d", house.url)


async def three_dead(house: House) -> None:
    house.say("a1", "a2", key="a")
    house.say("b1", key="b")
    house.say("loose")
    await die(house, "a1", "b1", loose="strange")


async def test_a_list_for_programs_and_its_pages(house: House, command: Command) -> None:
    await three_dead(house)
    listed = json.loads((await command("dead-letter", "list", *of(house), "--json")).stdout)
    assert [(each["key"], each["place"], each["error_code"]) for each in listed["letters"]] == [
        ("a", "kept", "too_large"),
        ("b", "kept", "too_large"),
        (None, "-", "strange"),
    ]
    assert listed["after"] is None

    page = await command("dead-letter", "list", *of(house), "--json", "--limit", 2)
    first = json.loads(page.stdout)
    assert first["after"] == listed["letters"][1]["position"]
    rest = await command("dead-letter", "list", *of(house), "--json", "--after", first["after"])
    assert json.loads(rest.stdout)["letters"] == listed["letters"][2:]

    some = await command("dead-letter", "list", *of(house), "--json", "--code", "strange")
    assert json.loads(some.stdout)["letters"] == listed["letters"][2:]
    none = await command("dead-letter", "list", *of(house), "--json", "--until", "1h")
    assert json.loads(none.stdout)["letters"] == []
    recent = await command("dead-letter", "list", *of(house), "--json", "--since", "1h")
    assert len(json.loads(recent.stdout)["letters"]) == 3


async def test_in_a_pipe_a_line_for_each_with_tabs(house: House, command: Command) -> None:
    await three_dead(house)
    lines = (await command("dead-letter", "list", *of(house))).stdout.splitlines()
    assert [line.split("\t")[2:6] for line in lines] == [
        ["talk", "a", "kept", "too_large"],
        ["talk", "b", "kept", "too_large"],
        ["talk", "-", "-", "strange"],
    ]
    groups = (await command("dead-letter", "list", *of(house), "--groups")).stdout.splitlines()
    assert [line.split("\t")[:4] for line in groups] == [
        ["2", "talk", "too_large", "0"],
        ["1", "talk", "strange", "0"],
    ]


async def test_the_payload_is_shown_only_when_asked_for_and_never_obeyed(
    house: House, command: Command
) -> None:
    house.say("secret \x1b[2J\u202e", key="a")
    await die(house, "secret \x1b[2J\u202e")
    letter = letter_of(house, "secret \x1b[2J\u202e")
    with house.eyes.begin() as connection:
        values = {"error": "bad\x1b[31m\nFAKE\tline", "trace": "at one\n\x07at two"}
        connection.execute(sa.update(house.tables.dead_letter).values(**values))

    plain = await command("dead-letter", "show", letter.id, *of(house))
    assert plain.exit_code == 0
    assert "secret" not in plain.output
    assert r"error	bad\x1b[31m\nFAKE\tline" in plain.stdout
    assert "at one\n\\x07at two" in plain.stdout

    shown = await command("dead-letter", "show", letter.id, *of(house), "--body")
    assert r"secret \u001b[2J" in shown.stdout  # as JSON wrote it
    assert r"\u202e" in shown.stdout
    assert not set("\x1b\u202e\x07") & set(plain.output + shown.output)

    told = json.loads(
        (await command("dead-letter", "show", letter.id, *of(house), "--body", "--json")).stdout
    )
    assert base64.b64decode(told["body_base64"]) == house.dead()[0].body
    bare = await command("dead-letter", "show", letter.id, *of(house), "--json")
    assert "body_base64" not in json.loads(bare.stdout)


async def test_one_is_replayed_by_its_id_and_the_version_that_was_seen(
    house: House, command: Command
) -> None:
    await three_dead(house)
    letter = letter_of(house, "a1")
    stale = await command("dead-letter", "replay", letter.id, *of(house), *WHY, "--seen", "1-abc")
    assert (stale.exit_code, "has died again since you looked" in stale.stderr) == (1, True)
    assert audited(house) == []

    done = await command(
        "dead-letter", "replay", letter.id, *of(house), *WHY, "--seen", letter.version, "--json"
    )
    assert json.loads(done.stdout) == {"replayed": 1, "changed": 0, "overtaken": 0}
    assert house.waiting() == ["a1", "a2"]
    (row,) = house.rows(house.tables.operator_action)
    assert (row.operator, row.reason) == ("grace", WHY[1])
    assert json.loads(row.detail)["kept_its_place"] is True

    gone = await command("dead-letter", "replay", letter.id, *of(house), *WHY)
    assert (gone.exit_code, "is no dead letter (any more)" in gone.stderr) == (1, True)


async def test_many_are_replayed_by_filter_after_a_plan(house: House, command: Command) -> None:
    await three_dead(house)
    plan = await command(
        "dead-letter", "replay", *of(house), "--code", "too_large", "--plan", "--json"
    )
    told = json.loads(plan.stdout)
    assert (told["count"], told["overtaken"], len(told["sample"])) == (2, 0, 2)
    assert (len(house.dead()), audited(house)) == (3, [])

    asked = await command("dead-letter", "replay", *of(house), "--code", "too_large", *WHY)
    assert (asked.exit_code, "pass --yes" in asked.stderr) == (2, True)
    assert (len(house.dead()), audited(house)) == (3, [])

    done = await command(
        *("dead-letter", "replay", *of(house), "--code", "too_large", *WHY),
        *("--yes", "--rate", 1000, "--operator", "ada", "--json"),
    )
    assert json.loads(done.stdout)["replayed"] == 2
    assert house.waiting() == ["a1", "a2", "b1"]
    assert audited(house) == [("ada", "dead_letter.replay")] * 2


async def test_a_plan_warns_of_those_that_have_lost_their_place(
    house: House, command: Command
) -> None:
    await three_dead(house)
    seen = letter_of(house, "a1").position
    told = await command("dead-letter", "unpark", "a", *of(house), "--plan", "--json")
    assert json.loads(told.stdout) == {"unparked": False, "positions": [seen], "waiting": 1}
    wrong = await command("dead-letter", "unpark", "a", *of(house), *WHY, "--position", seen + 1)
    assert (wrong.exit_code, "look again" in wrong.stderr) == (1, True)
    assert len(house.blocked()) == 2

    freed = await command("dead-letter", "unpark", "a", *of(house), *WHY, "--position", seen)
    assert freed.exit_code == 0, freed.output
    assert [row.key for row in house.blocked()] == ["b"]
    again = await command("dead-letter", "unpark", "a", *of(house), *WHY)
    assert (again.exit_code, "not parked" in again.stderr) == (1, True)

    one = await command(
        "dead-letter", "discard", letter_of(house, "b1").id, *of(house), *WHY, "--unpark"
    )
    assert (one.exit_code, one.stderr) == (0, "")
    plan = await command("dead-letter", "replay", *of(house), "--all", "--plan")
    assert "2 would be replayed" in plan.stdout
    assert "1 of them have lost their place" in plan.stderr
    done = await command("dead-letter", "replay", letter_of(house, "a1").id, *of(house), *WHY)
    assert (done.exit_code, "have lost their place" in done.stderr) == (0, True)


async def test_several_ids_are_discarded_and_their_keys_go_on_when_asked(
    house: House, command: Command
) -> None:
    await three_dead(house)
    ids = [letter_of(house, "a1").id, letter_of(house, "b1").id]
    asked = await command("dead-letter", "discard", *ids, *of(house), *WHY)
    assert (asked.exit_code, len(house.dead())) == (2, 3)

    done = await command("dead-letter", "discard", *ids, *of(house), *WHY, "--yes", "--unpark")

    assert done.stdout.splitlines()[0] == "discarded\t2"
    assert [word_of(row.body) for row in house.dead()] == ["loose"]
    assert house.blocked() == []
    rest = await command("dead-letter", "discard", "--all", *of(house), *WHY, "--yes", "--json")
    assert json.loads(rest.stdout)["discarded"] == 1


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "give IDs, or options that say which, or --all"),
        (["discard", "--all", "--key", "k"], "one of them"),
        (["replay", "not-an-id"], "is not a valid UUID"),
        (["replay", "--all", "--seen", "1-a"], "give one ID"),
        (["replay", "--all", "--since", "yesterday"], "is no moment"),
        (["replay", "--all", "--rate", "0"], "rate"),
        (["list", "--limit", "0"], "limit"),
    ],
)
async def test_what_cannot_be_meant_is_told_and_changes_nothing(
    house: House, command: Command, arguments: list[str], said: str
) -> None:
    await three_dead(house)
    before = house.dead()
    ended = await command("dead-letter", *arguments, *of(house))
    assert (ended.exit_code, said in ended.stderr) == (2, True), ended.stderr
    assert house.dead() == before


@pytest.mark.databases("sqlite")
async def test_an_action_without_a_reason_is_none(house: House, command: Command) -> None:
    await three_dead(house)
    id_ = letter_of(house, "a1").id
    for verb in ("replay", "discard"):
        ended = await command("dead-letter", verb, id_, *of(house))
        assert (ended.exit_code, "--reason" in ended.stderr) == (2, True)
        empty = await command("dead-letter", verb, id_, *of(house), "--reason", "  ")
        assert (empty.exit_code, "reason is missing" in empty.stderr) == (1, True)
    assert len(house.dead()) == 3


@pytest.mark.databases("sqlite")
async def test_a_database_without_our_tables_is_told_what_to_do(
    command: Command, tmp_path: Any
) -> None:
    (tmp_path / "empty.db").touch()
    ended = await command("dead-letter", "list", "-d", f"sqlite:///{tmp_path / 'empty.db'}")
    assert (ended.exit_code, "outbox-saga db upgrade" in ended.stderr) == (1, True)
    typo = tmp_path / "typo.db"
    missing = await command("dead-letter", "list", "-d", f"sqlite:///{typo}")
    assert (missing.exit_code, "there is no file" in missing.stderr) == (1, True)
    assert not typo.exists()


@pytest.mark.databases("sqlite")
async def test_on_a_terminal_a_person_types_how_many_and_why(house: House) -> None:
    await three_dead(house)

    terminal = Terminal("dead-letter", "replay", "--all", *of(house))
    terminal.type("2\n")
    assert await terminal.ended() == 1
    assert ("Type 3 to go on" in terminal.shown, len(house.dead())) == (True, 3)

    terminal = Terminal("dead-letter", "replay", "--all", *of(house))
    terminal.type("3\nthey fit now\n")
    assert await terminal.ended() == 0, terminal.shown
    assert house.dead() == []
    assert {row.reason for row in house.rows(house.tables.operator_action)} == {"they fit now"}


@pytest.mark.parametrize("verb", ["discard", "replay"])
async def test_what_dies_while_a_person_reads_the_plan_is_left_alone(
    house: House, verb: str
) -> None:
    house.say("seen1", key="a")
    house.say("seen2", key="b")
    await die(house, "seen1", "seen2")
    terminal = Terminal("dead-letter", verb, "--code", "too_large", *of(house), *WHY)
    await terminal.sees("Type 2 to go on")
    house.say("unseen", key="c")
    await die(house, "unseen")

    terminal.type("2\n")

    assert await terminal.ended() == 0, terminal.shown
    assert [row.key for row in house.dead()] == ["c"]


async def test_when_there_was_nothing_to_read_nothing_is_acted_on(house: House) -> None:
    terminal = Terminal("dead-letter", "discard", "--code", "too_large", *of(house))
    await terminal.sees("Why")
    house.say("unseen", key="c")
    await die(house, "unseen")

    terminal.type("they fit now\n")

    assert await terminal.ended() == 0, terminal.shown
    assert [row.key for row in house.dead()] == ["c"]


@pytest.mark.databases("sqlite")
async def test_on_a_terminal_there_are_names_above_aligned_columns(house: House) -> None:
    await three_dead(house)
    terminal = Terminal("dead-letter", "list", *of(house))
    code = await terminal.ended()
    names, *rows = terminal.shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert (code, len(rows)) == (0, 3)
    assert names.split()[:4] == ["position", "id", "topic", "key"]
    assert {row.index("talk") for row in rows} == {names.index("topic")}


async def test_parked_keys_are_listed_whether_their_letters_are_there_or_not(
    house: House, command: Command
) -> None:
    await three_dead(house)
    first, second, _ = house.dead()
    await command("dead-letter", "discard", first.id, *of(house), *WHY)

    listed = json.loads((await command("dead-letter", "keys", *of(house), "--json")).stdout)
    assert listed == {
        "keys": [
            {
                "position": first.position,
                "key": "a",
                "letter": None,
                "error_code": "too_large",
            },
            {
                "position": second.position,
                "key": "b",
                "letter": str(second.id),
                "error_code": "too_large",
            },
        ],
        "after": None,
    }
    page = await command("dead-letter", "keys", *of(house), "--limit", 1)
    assert str(first.position) in page.stdout
    assert f"the next page: --after {first.position}" in page.stderr
    rest = await command("dead-letter", "keys", *of(house), "--after", first.position)
    assert str(second.id) in rest.stdout
    assert str(first.position) not in rest.stdout.split()


async def test_who_decides_has_to_be_said_where_the_user_has_no_name(
    house: House, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three_dead(house)
    letter = house.dead()[0].id

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    monkeypatch.setattr("getpass.getuser", nameless)
    plan = await command("dead-letter", "replay", letter, *of(house), "--plan")
    assert plan.exit_code == 0
    refused = await command("dead-letter", "replay", letter, *of(house), *WHY)
    assert refused.exit_code == 2
    assert "say who decides, by --operator" in refused.stderr
    done = await command("dead-letter", "replay", letter, *of(house), *WHY, "--operator", "ada")
    assert done.exit_code == 0


LOOKS = (
    ("status",),
    ("audit",),
    ("dead-letter", "list"),
    ("dead-letter", "keys"),
    ("dead-letter", "replay", "--all", "--plan"),
    ("archive", "replay", "--since", "1h", "--plan"),
    ("prune", "--plan"),
    ("waiting", "list"),
    ("saga", "list"),
)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
async def test_who_only_looks_waits_for_no_writer(
    house: House, command: Command, look: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_saga.database.BUSY_SECONDS", 0.1)  # it would fail after that
    with house.eyes.begin() as connection:  # BEGIN IMMEDIATE: nobody else can write
        connection.execute(sa.delete(house.tables.process))
        seen = await command(*look, *of(house))
    assert seen.exit_code == 0, seen.output
