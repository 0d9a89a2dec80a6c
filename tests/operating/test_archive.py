"""The archive: what was published is kept, and sent again on somebody's decision."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import event

from outbox_saga.archive import Archive, Published, Sent
from outbox_saga.errors import AlreadyRunning
from outbox_saga.queries.archive import Place, archive_published
from outbox_saga.queries.relay import OutboxRow, Wanted, read_page
from outbox_saga.tables import PARTITIONS
from tests.operating.yard import ADA, audited, die, positions
from tests.relay.house import House, word_of


def page(house: House) -> list[OutboxRow]:
    """What waits, as a relay reads it."""
    with house.database.begin() as connection:
        wanted = Wanted(range(PARTITIONS), 100, look_for_blocked=False)
        return read_page(connection, house.tables, house.clock, wanted)


def publish(house: House, rows: Sequence[OutboxRow] | None = None) -> int:
    """What waits is published: the broker has it, and the archive."""
    waiting = page(house) if rows is None else rows
    with house.database.begin() as connection:
        return archive_published(connection, house.tables, house.clock, waiting)


def archived(house: House) -> list[Any]:
    archive = house.tables.archive
    return house.rows(archive, archive.c.published_at, archive.c.position)


async def test_what_was_published_moves_to_the_archive_whole(house: House) -> None:
    ids = house.say("a", "b", key="k")
    house.say("c")
    before = house.rows(house.tables.outbox, house.tables.outbox.c.position)

    assert publish(house) == 3

    assert house.waiting() == []
    kept = ("id", "position", "partition", "topic", "key", "headers", "body", "created_at")
    assert [[getattr(row, name) for name in kept] for row in archived(house)] == [
        [getattr(row, name) for name in kept] for row in before
    ]
    assert [row.id for row in archived(house)][:2] == ids
    with house.eyes.connect() as connection:
        now = house.clock.read(connection)
    assert {row.published_at <= now for row in archived(house)} == {True}
    assert len({row.published_at for row in archived(house)}) == 1


async def test_only_rows_of_this_position_and_this_id_move(house: House) -> None:
    house.say("a", "b")
    a, b = page(house)

    assert publish(house, [a._replace(id=b.id), b._replace(position=b.position + 1)]) == 0
    assert publish(house, [a]) == 1
    assert publish(house, [a]) == 0

    assert house.waiting() == ["b"]
    assert [word_of(row.body) for row in archived(house)] == ["a"]


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_two_owners_who_remove_the_same_rows_keep_one_copy(house: House) -> None:
    house.say(*range(50))
    rows = page(house)
    removed = await asyncio.gather(
        *(
            house.another_database().run(archive_published, house.tables, house.clock, rows)
            for _ in range(4)
        )
    )
    assert sorted(removed) == [0, 0, 0, 50]
    assert len(archived(house)) == 50


async def test_a_replay_sends_in_the_order_of_publication_under_the_same_ids_once(
    house: House,
) -> None:
    ids = [*house.say("a1", key="a"), *house.say("b1", key="b"), *house.say("a2", key="a")]
    publish(house)
    house.advance(10)
    ids += [*house.say("a3", key="a"), *house.say("loose")]
    publish(house)
    house.advance(10)
    last = max(row.position for row in archived(house))

    sent = Archive(house.database).replay(ADA, batch=2).run()

    assert sent == Sent(5, 0)
    assert house.waiting() == ["a1", "b1", "a2", "a3", "loose"]
    assert min(positions(house, house.tables.outbox).values()) > last
    rows = house.rows(house.tables.outbox, house.tables.outbox.c.position)
    assert [row.id for row in rows] == ids
    assert [json.loads(row.headers)["replay"] for row in rows] == [1] * 5
    assert len(archived(house)) == 5
    assert audited(house) == [("ada", "archive.replay"), ("ada", "archive.replay.ended")]


async def test_a_replay_of_a_plan_sends_what_the_plan_counted(house: House) -> None:
    house.say("a")
    publish(house)
    house.advance(1)
    archive = Archive(house.database)
    with house.database.begin() as connection:
        plan = archive.plan(connection)
    house.say("b")
    house.advance(1)
    publish(house)

    assert archive.replay(ADA, plan.wanted).run() == Sent(1, 0)

    assert house.waiting() == ["a"]


async def test_what_comes_back_into_the_archive_is_not_sent_for_ever(house: House) -> None:
    house.say("a", "b", "c")
    publish(house)
    house.advance(1)
    replay = Archive(house.database).replay(ADA, batch=1)
    sent = 0
    more = True
    while more:
        with house.database.begin() as connection:
            more = replay.run_once(connection)
        sent += publish(house)
        house.advance(1)
        assert sent < 100, "it never ends"
    assert (sent, replay.sent) == (3, Sent(3, 0))


async def test_the_last_copy_counts_on(house: House) -> None:
    house.say("a")
    for times in range(3):
        publish(house)
        house.advance(1)
        assert Archive(house.database).replay(ADA).run() == Sent(1, 0), times
        house.advance(1)
    (row,) = house.rows(house.tables.outbox)
    assert json.loads(row.headers)["replay"] == 3


async def test_what_waits_or_is_a_dead_letter_is_not_sent_beside_itself(house: House) -> None:
    house.say("a", "dead", "c")
    publish(house)
    house.advance(1)
    assert Archive(house.database).replay(ADA).run() == Sent(3, 0)
    assert Archive(house.database).replay(ADA).run() == Sent(0, 3)
    await die(house, "dead")
    assert Archive(house.database).replay(ADA).run() == Sent(2, 1)
    assert house.waiting() == ["a", "c"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Published(key="a"), ["1", "4"]),
        (Published(topic="talk"), ["1", "2", "3", "4"]),
        (Published(topic="elsewhere"), []),
    ],
)
async def test_only_what_matches_is_sent(
    house: House, wanted: Published, words: list[str]
) -> None:
    for word, key in (("1", "a"), ("2", "b"), ("3", None), ("4", "a")):
        house.say(word, key=key)
    publish(house)
    house.advance(1)
    with house.database.begin() as connection:
        assert Archive(house.database).plan(connection, wanted).count == len(words)
    Archive(house.database).replay(ADA, wanted).run()
    assert house.waiting() == words


async def test_since_and_until_bound_the_moment_of_publication(house: House) -> None:
    for word in ("1", "2", "3"):
        house.say(word)
        publish(house)
        house.advance(100)
    moments = [row.published_at for row in archived(house)]
    archive = Archive(house.database)
    wanted = Published(since=moments[1], until=moments[2])
    with house.database.begin() as connection:
        (topic,) = archive.plan(connection, wanted).topics
    assert (topic.first, topic.last, topic.count) == (moments[1], moments[1], 1)
    archive.replay(ADA, wanted).run()
    assert house.waiting() == ["2"]


async def test_a_plan_says_what_inboxes_may_have_forgotten(house: House) -> None:
    for word in ("old", "older than the window", "young"):
        house.say(word)
        publish(house)
        house.advance(100)
    archive = Archive(house.database)
    with house.database.begin() as connection:
        assert archive.plan(connection, inbox_window=150).forgotten == 2
        assert archive.plan(connection, inbox_window=350).forgotten == 0
        assert archive.plan(connection).forgotten == 0
    assert house.waiting() == []


async def test_one_replay_of_an_archive_runs_at_a_time(house: House) -> None:
    house.say("a", "b")
    publish(house)
    house.advance(1)
    first = Archive(house.database).replay(ADA, batch=1)
    with house.database.begin() as connection:
        assert first.run_once(connection)

    with pytest.raises(AlreadyRunning, match=r"process \d+ on"):
        Archive(house.database).replay(ADA).run()

    house.advance(61)  # it has died, or so it seems
    assert Archive(house.database).replay(ADA).run() == Sent(1, 1)
    assert house.waiting() == ["a", "b"]
    with house.database.begin() as connection:
        Archive(house.database).replay(ADA, batch=1).run_once(connection)
    with pytest.raises(AlreadyRunning), house.database.begin() as connection:
        first.run_once(connection)


async def test_a_replay_that_is_stopped_says_how_far_it_was_and_lets_the_next_begin(
    house: House,
) -> None:
    house.say("a")
    publish(house)
    house.advance(1)
    house.say("b")
    publish(house)
    house.advance(1)
    stop = asyncio.Event()
    replay = Archive(house.database).replay(ADA, batch=1)

    sent = await replay.run_async(stop, told=lambda _: stop.set())

    assert (sent, replay.reached) == (
        Sent(1, 0),
        Place(archived(house)[0].published_at, archived(house)[0].position),
    )
    assert audited(house)[-1] == ("ada", "archive.replay.stopped")
    assert await Archive(house.database).replay(ADA).run_async() == Sent(1, 1)


async def test_a_slow_replay_sends_no_more_than_a_seconds_worth_at_once(house: House) -> None:
    house.say(*range(6))
    publish(house)
    house.advance(1)
    replay = Archive(house.database).replay(ADA, rate=3.0)
    counts = []
    more = True
    while more:
        before = replay.sent.messages
        with house.database.begin() as connection:
            more = replay.run_once(connection)
        counts.append(replay.sent.messages - before)
    assert counts == [3, 3, 0]


async def test_a_replay_waits_for_writers_of_its_keys_so_that_none_is_overtaken(
    house: House,
) -> None:
    """Nothing of a key is visible before what has a lower position."""
    from outbox_saga.queries.outbox import lock_number

    house.say("a", key="k")
    publish(house)
    house.advance(1)
    seen: list[Any] = []
    listener: Callable[..., None] = lambda *args: seen.append(args[2:4])  # noqa: E731
    event.listen(house.database.engine, "before_cursor_execute", listener)
    Archive(house.database).replay(ADA).run()
    event.remove(house.database.engine, "before_cursor_execute", listener)
    told = " ".join(f"{statement} {values}" for statement, values in seen)
    if house.name != "sqlite":
        assert str(lock_number("k")) in told
        assert "advisory_xact_lock" in told or "key_lock" in told
