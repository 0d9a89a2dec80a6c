"""A process dies at any point of an operator's work, or of housekeeping: nothing is half done, and
doing it again does the rest.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.archive import Archive
from outbox_saga.database import Database
from outbox_saga.dead_letters import DeadLetters
from outbox_saga.queries.archive import archive_published
from outbox_saga.queries.failures import store_failures
from outbox_saga.queries.relay import Failed
from outbox_saga.testing.crash_points import CrashPoints, ProcessDied
from outbox_saga_relay.housekeeping import DAY, Housekeeping
from tests.operating.test_archive import archived, page, publish
from tests.operating.test_housekeeping import handle
from tests.operating.yard import ADA, positions
from tests.relay.house import House, word_of

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")

Work = Callable[[Database], object]


def each_point(
    house: House,
    prepare: Callable[[], object],
    work: Work,
    check: Callable[[], None],
    *,
    stride: int = 5,
) -> int:
    """Does the work once for each of its points, dies there, and checks; returns how many.

    Args:
        stride: Every so-many-th point on the servers; on SQLite it is every one.
    """
    stride = 1 if house.name == "sqlite" else stride
    at = -zlib.crc32(house.name.encode()) % stride
    while True:
        at += stride
        house.empty()
        prepare()
        database = house.another_database()
        points = CrashPoints(at)
        points.watch_engine(database.engine)
        points.watch_engine(database.program_engine)  # that of housekeeping
        try:
            work(database)
        except ProcessDied:
            points.bury(house.eyes)
        if not points.dead:
            database.engine.dispose()
            database.program_engine.dispose()
            check()
            return points.count
        try:
            check()
        except AssertionError as error:
            error.add_note(f"it died at point {at}: {points.place}")
            raise


def three_dead(house: House) -> None:
    """Three of a key, each parked; a fourth waits behind them."""
    house.say("1", "2", "3", "4", key="k")
    rows = page(house)[:3]
    with house.database.begin() as connection:
        failed = [(Failed(row, None, "too_large", "never"), 1) for row in rows]
        store_failures(connection, house.tables, house.clock, failed)


def replayed_are_whole(house: House, original: dict[str, int]) -> int:
    """How many have come back; each is in one place, its own, and parks its key or does not."""
    waiting = positions(house, house.tables.outbox)
    dead = positions(house, house.tables.dead_letter)
    assert waiting.keys().isdisjoint(dead)
    assert waiting | dead == original
    assert {row.position for row in house.blocked()} == set(dead.values())
    back = [
        row
        for row in house.rows(house.tables.outbox)
        if json.loads(row.headers).get("replay") == 1
    ]
    assert len(back) == len(waiting) - 1  # "4" was never dead
    assert len(house.rows(house.tables.operator_action)) == len(back)
    return len(back)


async def test_a_replay_that_dies_has_put_back_whole_letters_and_the_next_does_the_rest(
    house: House,
) -> None:
    original: dict[str, int] = {}
    partly: set[int] = set()

    def prepare() -> None:
        three_dead(house)
        original.clear()
        original.update(positions(house, house.tables.outbox))
        original.update(positions(house, house.tables.dead_letter))

    def check() -> None:
        partly.add(replayed_are_whole(house, original))
        DeadLetters(house.database).replay_all(ADA).run()
        assert replayed_are_whole(house, original) == 3
        assert house.waiting() == ["1", "2", "3", "4"]

    count = each_point(
        house, prepare, lambda database: DeadLetters(database).replay_all(ADA).run(), check
    )
    assert count > 30
    assert {0, 3} <= partly if house.name != "sqlite" else partly == {0, 1, 2, 3}


async def test_a_discard_that_dies_has_discarded_whole_letters(house: House) -> None:
    partly: set[int] = set()

    def check() -> None:
        left = len(house.dead())
        partly.add(left)
        assert len(house.blocked()) == left
        assert len(house.rows(house.tables.operator_action)) == 3 - left
        DeadLetters(house.database).discard_all(ADA, unpark=True).run()
        assert (house.dead(), house.blocked(), house.waiting()) == ([], [], ["4"])

    each_point(
        house,
        lambda: three_dead(house),
        lambda database: DeadLetters(database).discard_all(ADA, unpark=True).run(),
        check,
    )
    assert {0, 3} <= partly if house.name != "sqlite" else partly == {0, 1, 2, 3}


async def test_a_message_is_in_the_outbox_or_in_the_archive_wherever_its_relay_dies(
    house: House,
) -> None:
    def work(database: Database) -> None:
        rows = page(house)
        with database.begin() as connection:
            archive_published(connection, house.tables, house.clock, rows)

    def check() -> None:
        kept = [word_of(row.body) for row in archived(house)]
        assert (house.waiting(), kept) in ((["a", "b"], []), ([], ["a", "b"]))

    count = each_point(house, lambda: house.say("a", "b", key="k"), work, check)
    assert count >= 4


async def test_a_replay_of_the_archive_that_dies_sends_nothing_twice_at_once(
    house: House,
) -> None:
    def prepare() -> None:
        house.advance(-house.clock.shift)  # it is today again
        house.say("a", "b", "c", key="k")
        publish(house)
        house.advance(1)

    def check() -> None:
        assert house.waiting() == ["a", "b", "c"][: len(house.waiting())]
        house.advance(120)  # the lease of the dead one has run out
        Archive(house.database).replay(ADA, batch=1).run()
        assert house.waiting() == ["a", "b", "c"]
        ids: list[UUID] = [row.id for row in house.rows(house.tables.outbox)]
        assert len(ids) == len(set(ids))

    count = each_point(
        house, prepare, lambda database: Archive(database).replay(ADA, batch=1).run(), check
    )
    assert count > 20


async def test_housekeeping_that_dies_has_removed_nothing_young_and_the_next_does_the_rest(
    house: House,
) -> None:
    def prepare() -> None:
        house.advance(-house.clock.shift)  # it is today again
        house.say("old")
        publish(house)
        archive = house.tables.archive
        with house.eyes.begin() as connection:
            connection.execute(sa.update(archive).values(published_at=house.clock.now(-9 * DAY)))
        house.say("young")
        publish(house)
        house.say("waits")
        handle(house, 2, ago=31 * DAY)
        handle(house, 1, ago=1)

    def keep(database: Database) -> None:
        for _ in Housekeeping(database, batch=1).batches():
            pass

    def check() -> None:
        assert 1 <= len(house.inbox()) <= 3
        assert word_of(archived(house)[-1].body) == "young"
        house.advance(120)
        keep(house.database)
        assert [word_of(row.body) for row in archived(house)] == ["young"]
        assert (len(house.inbox()), house.waiting()) == (1, ["waits"])

    count = each_point(house, prepare, keep, check, stride=17)
    assert count > 20
