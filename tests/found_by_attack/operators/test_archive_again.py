"""A replay of what was replayed before."""

from __future__ import annotations

import json

from outbox_saga.archive import Archive, Sent
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
