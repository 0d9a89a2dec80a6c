"""Dead letters: seen, replayed, discarded, their keys unparked; each by a person's decision."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.dead_letters import DeadLetters, Matching, Swept
from outbox_saga.errors import SeenChanged
from outbox_saga.pacing import Pace
from outbox_saga.queries.outbox import partition_of
from tests.operating.yard import (
    ADA,
    audited,
    die,
    letter_of,
    letters_of,
    positions,
    replay,
    revisits,
)
from tests.relay.house import PATIENCE, House, Recorder, word_of

NOBODY = UUID(int=7)


async def test_a_letter_that_is_replayed_goes_out_before_the_later_ones_of_its_key(
    house: House,
) -> None:
    ids = house.say("k1", "k2", "k3", key="k")
    place = positions(house, house.tables.outbox)
    relay = await die(house, "k1")
    before = letter_of(house, "k1")
    assert (before.parked, before.keeps_its_place, before.id) == (True, True, ids[0])

    assert replay(house, "k1").waits_behind is None

    assert positions(house, house.tables.outbox) == place
    assert (house.dead(), house.blocked()) == ([], [])
    assert revisits(house) == {before.partition: place["k1"]}
    recorder = relay.publisher = Recorder()
    for _ in range(3):
        await relay.run_once()
    assert recorder.words == ["k1", "k2", "k3"]
    assert [envelope.id for envelope in recorder.attempts] == ids
    assert house.waiting() == []


async def test_a_replay_keeps_the_id_and_the_bytes_and_counts_itself(house: House) -> None:
    (id_,) = house.say("big", key="k")
    (row,) = house.rows(house.tables.outbox)
    await die(house, "big")

    replay(house, "big")

    (again,) = house.rows(house.tables.outbox)
    told = json.loads(again.headers)
    assert told.pop("replay") == 1
    assert told == json.loads(row.headers)
    kept = ("position", "id", "partition", "topic", "key", "body", "created_at")
    assert [getattr(again, name) for name in kept] == [getattr(row, name) for name in kept]

    relay = await die(house, "big")
    replay(house, "big")
    recorder = relay.publisher = Recorder()
    await relay.run_once()
    assert [(envelope.id, envelope.replay) for envelope in recorder.attempts] == [(id_, 2)]


async def test_a_letter_whose_key_was_unparked_says_that_it_gives_up_its_place(
    house: House,
) -> None:
    house.say("k1", "k2", key="k")
    relay = await die(house, "k1")
    letters = DeadLetters(house.database)
    position = letter_of(house, "k1").position
    with house.database.begin() as connection:
        parked = letters.parked(connection, "k")
        assert parked == [position]
        assert letters.waiting(connection, "k") == 1
        letters.unpark(connection, "k", parked, ADA)
    assert revisits(house) == {partition_of("k", NOBODY): parked[0]}

    recorder = relay.publisher = Recorder()
    await relay.run_once()
    assert recorder.words == ["k2"]
    letter = letter_of(house, "k1")
    assert (letter.parked, letter.keeps_its_place) == (False, False)
    with house.database.begin() as connection:
        plan = letters.plan(connection)
    assert (plan.count, plan.overtaken) == (1, 1)

    replay(house, "k1")
    await relay.run_once()
    assert recorder.words == ["k2", "k1"]
    assert audited(house) == [("ada", "key.unpark"), ("ada", "dead_letter.replay")]
    detail = json.loads(house.rows(house.tables.operator_action)[-1].detail)
    assert detail["kept_its_place"] is False


async def test_a_replayed_letter_says_which_park_of_its_key_it_waits_behind(house: House) -> None:
    house.say("k1", "k2", "k3", key="k")
    await die(house, "k1")
    letters = DeadLetters(house.database)
    with house.database.begin() as connection:
        letters.unpark(connection, "k", letters.parked(connection, "k"), ADA)
    relay = await die(house, "k2")

    assert replay(house, "k1").waits_behind == letter_of(house, "k2").position

    recorder = relay.publisher = Recorder()
    await relay.run_once()
    assert recorder.words == []
    replay(house, "k2")
    for _ in range(3):
        await relay.run_once()
    assert recorder.words == ["k1", "k2", "k3"]


async def test_a_sweep_of_a_plan_acts_on_what_the_plan_counted(house: House) -> None:
    house.say("a1", key="a")
    await die(house, "a1")
    house.advance(1)
    letters = DeadLetters(house.database)
    with house.database.begin() as connection:
        plan = letters.plan(connection, Matching(code="too_large"))
    house.say("b1", key="b")
    house.advance(1)
    await die(house, "b1")

    assert letters.discard_all(ADA, plan.matching).run() == Swept(1, 0)

    assert [word_of(row.body) for row in house.dead()] == ["b1"]


async def three_of_which_two_have_one_position(house: House) -> list[int]:
    """Their positions before: as after a promotion of a standby, which uses some again."""
    house.say("a", "b", "c")
    await die(house, "a", "b", "c")
    letter = house.tables.dead_letter
    at = [row.position for row in house.dead()]
    with house.eyes.begin() as connection:
        connection.execute(
            sa.update(letter).where(letter.c.position == at[1]).values(position=at[0])
        )
    house.advance(1)
    return at


async def test_two_letters_of_one_position_are_on_one_page(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = await three_of_which_two_have_one_position(house)
    letters = DeadLetters(house.database)

    with house.database.begin() as connection:
        page = letters.find(connection, limit=1)
        rest = letters.find(connection, after=page[-1].position, limit=1)
    assert [each.position for each in page + rest] == [at[0], at[0], at[2]]
    assert len({each.id for each in page + rest}) == 3

    monkeypatch.setattr("outbox_saga.dead_letters.PAGE", 1)
    assert letters.discard_all(ADA).run() == Swept(3, 0)


async def test_of_two_letters_of_one_position_the_second_waits_for_the_first(
    house: House,
) -> None:
    at = await three_of_which_two_have_one_position(house)
    letters = DeadLetters(house.database)

    assert letters.replay_all(ADA).run() == Swept(2, 1)
    assert len(house.waiting()) == 2
    (second,) = house.dead()
    with house.database.begin() as connection:
        seen = letters.get(connection, second.id)
    with (
        pytest.raises(SeenChanged, match=f"another message waits at position {at[0]}"),
        house.database.begin() as connection,
    ):
        letters.replay(connection, seen, ADA)


async def test_a_key_whose_letter_was_discarded_is_among_the_parked_ones(house: House) -> None:
    house.say("a1", "a2", key="a")
    house.say("b1", key="b")
    await die(house, "a1", "b1")
    letters = DeadLetters(house.database)
    first, second = house.dead()
    with house.database.begin() as connection:
        letters.discard(connection, letters.get(connection, first.id), ADA)
        found = letters.keys(connection)
        rest = letters.keys(connection, after=found[0].position, limit=1)
    assert [(each.key, each.position, each.letter) for each in found] == [
        ("a", first.position, None),
        ("b", second.position, second.id),
    ]
    assert rest == found[1:]


async def test_all_that_match_are_replayed_in_the_order_of_each_key_and_the_rest_stays(
    house: House,
) -> None:
    house.say("a1", key="a")
    house.say("b1", key="b")
    house.say("loose")
    house.say("a2", key="a")
    house.say("other", key="c")
    await die(house, "a1", "b1", "loose", other="strange")
    letters = DeadLetters(house.database)

    swept = letters.replay_all(ADA, Matching(code="too_large", topic="talk")).run()

    assert swept == Swept(3, 0)
    assert house.waiting() == ["a1", "b1", "loose", "a2"]
    assert [word_of(row.body) for row in house.dead()] == ["other"]
    assert audited(house) == [("ada", "dead_letter.replay")] * 3


async def test_a_sweep_can_be_run_on_the_async_engine_and_stopped(house: House) -> None:
    house.say("a", "b", "c")
    await die(house, "a", "b", "c")
    stop = asyncio.Event()
    sweep = DeadLetters(house.database).replay_all(ADA)

    swept = await sweep.run_async(stop, told=lambda _: stop.set())

    assert (swept, house.waiting()) == (Swept(1, 0), ["a"])
    again = DeadLetters(house.database).replay_all(ADA)
    assert await again.run_async() == Swept(2, 0)


async def test_a_sweep_takes_no_letter_twice_though_it_dies_again_meanwhile(
    house: House,
) -> None:
    house.say("a", "b")
    relay = await die(house, "a", "b")
    sweep = DeadLetters(house.database).replay_all(ADA)
    with house.database.begin() as connection:
        assert sweep.run_once(connection)
        assert sweep.run_once(connection)
    await relay.run_once()
    assert [word_of(row.body) for row in house.dead()] == ["a", "b"]

    with house.database.begin() as connection:
        assert not sweep.run_once(connection)

    assert sweep.swept == Swept(2, 0)


async def test_a_sweep_goes_no_faster_than_its_rate(house: House) -> None:
    house.say(*range(5))
    await die(house, *map(str, range(5)))
    now = [100.0]
    sweep = DeadLetters(house.database).replay_all(ADA)
    sweep.pace = Pace(2.0, lambda: now[0])
    pauses = []
    for _ in range(5):
        pauses.append(sweep.pace.pause())
        now[0] += pauses[-1]
        with house.database.begin() as connection:
            sweep.run_once(connection)
    assert pauses == [0.0, 0.5, 0.5, 0.5, 0.5]

    now[0] += 60  # time that was not used is not saved up
    sweep.pace.went(1)
    assert sweep.pace.pause() == 0.5


async def test_a_letter_that_has_died_again_since_it_was_seen_is_not_touched(
    house: House,
) -> None:
    house.say("a", key="k")
    relay = await die(house, "a")
    seen = letter_of(house, "a")
    replay(house, "a")
    await relay.run_once()
    letters, now = DeadLetters(house.database), letter_of(house, "a")
    assert now.id == seen.id
    assert now.version != seen.version
    before = house.rows(house.tables.operator_action)

    for act in (letters.replay, letters.discard):
        with pytest.raises(SeenChanged, match="look again"), house.database.begin() as connection:
            act(connection, seen, ADA)

    assert letters_of(house.database) == [now]
    assert house.rows(house.tables.operator_action) == before
    (park,) = house.blocked()
    assert (park.position, park.until) == (now.position, None)


async def test_of_two_operators_who_replay_a_letter_at_once_one_is_told_that_it_is_gone(
    house: House,
) -> None:
    house.say("a", "b", key="k")
    await die(house, "a")
    letters, seen = DeadLetters(house.database), letter_of(house, "a")

    async def operator() -> object:
        try:
            return await house.database.run(letters.replay, seen, ADA)
        except SeenChanged as error:
            return error

    outcomes = await asyncio.wait_for(asyncio.gather(*(operator() for _ in range(4))), PATIENCE)

    assert sum(isinstance(outcome, SeenChanged) for outcome in outcomes) == 3
    assert house.waiting() == ["a", "b"]
    assert audited(house) == [("ada", "dead_letter.replay")]


async def test_a_discarded_letter_is_gone_and_its_key_waits_unless_it_is_unparked_too(
    house: House,
) -> None:
    house.say("a1", "a2", key="a")
    house.say("b1", "b2", key="b")
    relay = await die(house, "a1", "b1")
    letters = DeadLetters(house.database)

    a1, b1 = letter_of(house, "a1"), letter_of(house, "b1")
    with house.database.begin() as connection:
        letters.discard(connection, a1, ADA)
        letters.discard(connection, b1, ADA, unpark=True)

    recorder = relay.publisher = Recorder()
    await relay.run_once()
    assert (recorder.words, house.waiting(), house.dead()) == (["b2"], ["a2"], [])
    with house.database.begin() as connection:
        letters.unpark(connection, "a", letters.parked(connection, "a"), ADA)
    await relay.run_once()
    assert (recorder.words, house.waiting()) == (["b2", "a2"], [])
    assert [action for _, action in audited(house)] == [
        "dead_letter.discard",
        "dead_letter.discard",
        "key.unpark",
    ]


async def test_all_that_match_are_discarded(house: House) -> None:
    house.say("a1", "a2", key="a")
    house.say("b1", key="b")
    relay = await die(house, "a1", "b1")

    swept = DeadLetters(house.database).discard_all(ADA, Matching(key="a"), unpark=True).run()

    assert swept == Swept(1, 0)
    assert [word_of(row.body) for row in house.dead()] == ["b1"]
    relay.publisher = Recorder()
    await relay.run_once()
    assert house.waiting() == []


async def test_a_key_that_is_not_parked_where_it_was_seen_is_not_unparked(house: House) -> None:
    house.say("a1", "a2", key="a")
    await die(house, "a1")
    letters = DeadLetters(house.database)
    with house.database.begin() as connection:
        (position,) = letters.parked(connection, "a")

    for seen in ([], [position + 1], [position, position + 1]):
        with pytest.raises(SeenChanged), house.database.begin() as connection:
            letters.unpark(connection, "a", seen, ADA)
    with pytest.raises(SeenChanged), house.database.begin() as connection:
        letters.unpark(connection, "b", [position], ADA)

    assert [row.position for row in house.blocked()] == [position]
    assert (audited(house), revisits(house)) == ([], {})


async def test_a_key_in_backoff_is_not_unparked(house: House) -> None:
    house.say("a1", key="a")
    await die(house, "a1")
    with house.eyes.begin() as connection:
        blocked = house.tables.blocked_key
        connection.execute(sa.update(blocked).values(until=house.clock.now(60)))
    letters = DeadLetters(house.database)
    with house.database.begin() as connection:
        assert letters.parked(connection, "a") == []
    assert letter_of(house, "a1").parked is False


async def test_letters_are_found_by_filter_and_page_by_page(house: House) -> None:
    for number in range(7):
        house.say(f"w{number}", key=f"k{number % 2}")
    letters = DeadLetters(house.database)
    for round_ in range(4):
        await die(house, f"w{2 * round_}")
        with house.database.begin() as connection:
            if parked := letters.parked(connection, "k0"):
                letters.unpark(connection, "k0", parked, ADA)
    with house.database.begin() as connection:
        everything = letters.find(connection)
        assert [word_of(letters.body(connection, each)) for each in everything] == [
            "w0",
            "w2",
            "w4",
            "w6",
        ]
        pages, after = [], 0
        while page := letters.find(connection, after=after, limit=3):
            pages.append([each.id for each in page])
            after = page[-1].position
        assert [len(page) for page in pages] == [3, 1]
        assert [id_ for page in pages for id_ in page] == [each.id for each in everything]
        assert letters.find(connection, Matching(key="k1")) == []
        assert letters.find(connection, Matching(topic="elsewhere")) == []
        assert letters.find(connection, Matching(code="other")) == []
        middle = everything[2].died_at
        late = letters.find(connection, Matching(since=middle))
        assert late == [each for each in everything if each.died_at >= middle]
        early = letters.find(connection, Matching(until=middle))
        assert early == [each for each in everything if each.died_at < middle]
        (group,) = letters.groups(connection)
        assert (group.topic, group.error_code, group.count) == ("talk", "too_large", 4)
        assert (group.first, group.last) == (everything[0].died_at, everything[-1].died_at)
        assert everything[0].size == len(letters.body(connection, everything[0]))


async def test_a_letter_that_cannot_be_read_is_replayed_as_it_is(house: House) -> None:
    house.say("a")
    with house.eyes.begin() as connection:
        connection.execute(sa.update(house.tables.outbox).values(headers="{not json"))
    relay = house.relay(Recorder())
    await relay.run_once()
    (letter,) = letters_of(house.database)
    assert letter.error_code == "unreadable"

    with house.database.begin() as connection:
        DeadLetters(house.database).replay(connection, letter, ADA)

    (row,) = house.rows(house.tables.outbox)
    assert row.headers == "{not json"


async def test_what_is_gone_is_told_as_gone(house: House) -> None:
    house.say("a")
    await die(house, "a")
    letters, seen = DeadLetters(house.database), letter_of(house, "a")
    stranger = replace(seen, id=NOBODY)
    with house.database.begin() as connection:
        for look in (
            lambda: letters.get(connection, NOBODY),
            lambda: letters.body(connection, stranger),
        ):
            with pytest.raises(SeenChanged, match="list them again"):
                look()
        assert letters.get(connection, seen.id) == seen
