"""A replay of what was replayed before."""

from __future__ import annotations

import datetime as dt
import json

import sqlalchemy as sa

from outbox_saga.archive import Archive, Published, Sent
from tests.operating.test_archive import publish
from tests.operating.yard import ADA
from tests.relay.house import House


async def test_a_message_that_was_published_twice_is_sent_once(house: House) -> None:
    """A replay that died is begun again: each would send twice as much as the one before."""
    house.say("a", "b", "c")
    archive = Archive(house.database)
    for _ in range(3):
        publish(house)
        house.advance(1)
        replay, sent, more = archive.replay(ADA, batch=2), 0, True
        while more:
            with house.database.begin() as connection:
                more = replay.run_once(connection)
            sent += publish(house)
            house.advance(1)
        assert (sent, replay.sent) == (3, Sent(3, 0))


async def test_a_copy_that_inboxes_dropped_is_as_old_as_its_message(house: House) -> None:
    """It was handled when it first came: by now inboxes may have forgotten that."""
    day = 86_400
    house.say("a")
    publish(house)
    archive = Archive(house.database)
    house.advance(29 * day)
    archive.replay(ADA).run()
    publish(house)
    house.advance(2 * day)
    with house.database.begin() as connection:
        since = house.clock.read(connection) - dt.timedelta(days=5)
        plan = archive.plan(connection, Published(since=since), inbox_window=30 * day)
    assert (plan.count, plan.forgotten) == (1, 1)


async def test_the_last_copy_counts_on_in_whichever_batch_it_is(house: House) -> None:
    house.say("a", "b")
    archive = Archive(house.database)
    for _ in range(3):
        publish(house)
        house.advance(1)
        archive.replay(ADA, batch=1).run()
        house.advance(1)
    rows = house.rows(house.tables.outbox)
    assert [json.loads(row.headers)["replay"] for row in rows] == [3, 3]


async def test_what_a_replay_that_died_has_sent_keeps_its_place(house: House) -> None:
    house.say("k1", "k2", "k3", key="k")
    archive = Archive(house.database)
    publish(house)
    house.advance(1)
    replay = archive.replay(ADA, batch=1)
    with house.database.begin() as connection:
        replay.run_once(connection)
    publish(house)
    house.advance(61)
    archive.replay(ADA, batch=1).run()
    assert house.waiting() == ["k1", "k2", "k3"]


async def test_two_copies_that_left_after_their_replays_are_sent_once(house: House) -> None:
    """Both replays began before the moment from which on a third one sends."""
    archive = Archive(house.database)
    house.say("a")
    publish(house)
    house.advance(10)
    with house.database.begin() as connection:
        since = house.clock.read(connection)
    for _ in range(2):
        archive.replay(ADA).run()
        house.advance(10)
        publish(house)
    with house.database.begin() as connection:
        connection.execute(  # the broker was away for long: they were noted long before
            sa.update(house.tables.operator_action).values(at=house.clock.now(-3600))
        )
    house.advance(10)

    assert archive.replay(ADA, Published(since=since)).run() == Sent(1, 0)
    (row,) = house.rows(house.tables.outbox)
    assert json.loads(row.headers)["replay"] == 3


async def test_a_window_longer_than_there_have_been_messages_forgets_nothing(house: House) -> None:
    house.say("a")
    publish(house)
    with house.database.begin() as connection:
        plan = Archive(house.database).plan(connection, inbox_window=100 * 366 * 86_400)
    assert (plan.count, plan.forgotten) == (1, 0)
