"""What may be forgotten goes, in bounded batches, by one runner; nothing else ever does."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from outbox_saga.archive import Archive
from outbox_saga.database import Database
from outbox_saga.errors import AlreadyRunning, ConfigurationError
from outbox_saga.ids import new_id
from outbox_saga.queries import archive_partitions as partitions
from outbox_saga.queries import pruning
from outbox_saga.queries.dead_letters import find_letters
from outbox_saga_migrations import check
from outbox_saga_relay.housekeeping import DAY, Housekeeping, Pruned
from tests.operating.test_archive import archived, publish
from tests.operating.yard import ADA, die, letter_of
from tests.relay.house import PATIENCE, House, word_of


def keeper(house: House, **options: Any) -> Housekeeping:
    return Housekeeping(house.another_database(), **{"pause": 0.0, **options})


@pytest.fixture(autouse=True)
def no_days_are_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    house = request.node.funcargs.get("house")
    if house is not None and house.name.startswith("postgres"):
        with house.eyes.begin() as connection:
            for day in partitions.partition_days(connection, house.tables):
                partitions.drop_day(connection, house.tables, day)


def handle(house: House, count: int, ago: float) -> None:
    """So many messages were handled so long ago."""
    with house.eyes.begin() as connection:
        for _ in range(count):
            connection.execute(
                sa.insert(house.tables.inbox).values(
                    consumer="c",
                    message_id=new_id(),
                    body_hash=b"0" * 32,
                    handled_at=house.clock.now(-ago),
                )
            )


def process(house: House, until: float) -> UUID:
    id_ = new_id()
    with house.eyes.begin() as connection:
        connection.execute(
            sa.insert(house.tables.process).values(
                id=id_,
                kind="relay",
                service="shop",
                host="h",
                pid=1,
                started_at=house.clock.now(-10 * DAY),
                seen_at=house.clock.now(until - 10),
                until=house.clock.now(until),
                detail="{}",
            )
        )
    return id_


def without_days(pruned: Pruned) -> tuple[int, int, int]:
    return pruned.inbox, pruned.archive, pruned.processes


async def test_what_is_past_its_window_goes_and_the_rest_stays(house: House) -> None:
    handle(house, 3, ago=31 * DAY)
    handle(house, 2, ago=20 * DAY)
    house.say("old")
    publish(house)
    house.advance(3 * DAY + 1)
    handle(house, 1, ago=0)
    house.say("new")
    publish(house)
    gone, alive = process(house, -8 * DAY), process(house, 10)
    recent = process(house, -6 * DAY)
    keeping = keeper(house)
    planned = keeping.plan()
    assert without_days(planned) == (3, 1, 1)
    assert len(house.inbox()) == 6

    pruned = await keeping.run_once()

    assert without_days(pruned) == (3, 1, 1)
    assert len(house.inbox()) == 3
    assert [word_of(row.body) for row in archived(house)] == ["new"]
    left = {row.id for row in house.rows(house.tables.process) if row.kind == "relay"}
    assert (left, gone in left) == ({alive, recent}, False)
    assert without_days(await keeping.run_once()) == (0, 0, 0)


async def test_nothing_unpublished_and_nothing_audited_goes_whatever_its_age(
    house: House,
) -> None:
    house.say("dead", "behind it", key="k")
    house.say("waits")
    await die(house, "dead")
    with house.eyes.begin() as connection:
        tables = house.tables
        old = house.clock.now(-400 * DAY)
        for row in list(connection.execute(sa.select(tables.outbox))):
            values = {k: v for k, v in row._mapping.items() if k != "position"}
            connection.execute(
                sa.insert(tables.delayed).values(**values, due_at=house.clock.now(-400 * DAY))
            )
        connection.execute(sa.update(tables.outbox).values(created_at=old))
        connection.execute(sa.update(tables.dead_letter).values(created_at=old, died_at=old))
        connection.execute(
            sa.insert(tables.operator_action).values(
                id=new_id(),
                at=old,
                operator="ada",
                action="a",
                subject="s",
                reason="r",
                detail="{}",
            )
        )
        connection.execute(
            sa.insert(tables.inbox_waiting).values(
                consumer="c",
                message_id=new_id(),
                topic="t",
                headers="{}",
                body=b"",
                arrived_at=old,
                until=old,
                attempts=1,
                error_code="e",
                error="e",
            )
        )
    kept = (
        tables.outbox,
        tables.delayed,
        tables.dead_letter,
        tables.blocked_key,
        tables.operator_action,
        tables.inbox_waiting,
        tables.saga,
    )
    before = [house.rows(table) for table in kept]
    assert all(before[:4])

    await keeper(house, archive_window=0.0, inbox_window=3600, process_window=0.0).run_once()

    assert [house.rows(table) for table in kept] == before


async def test_a_message_of_a_transaction_older_than_every_window_is_published_after_pruning(
    house: House,
) -> None:
    """Failure mode: retention by `created_at` deletes what nobody has read yet."""
    with house.eyes.begin() as connection:
        from outbox_saga.unit_of_work import UnitOfWork
        from tests.relay.house import Said

        UnitOfWork(connection).publish(Said(word="late"), key="k")
        # the transaction began long ago, as far as any clock can tell
        house.advance(40 * DAY)
    with house.eyes.begin() as connection:
        connection.execute(
            sa.update(house.tables.outbox).values(created_at=house.clock.now(-40 * DAY))
        )

    await keeper(house).run_once()

    assert house.waiting() == ["late"]


async def test_an_inbox_without_a_window_is_kept_for_ever(house: House) -> None:
    handle(house, 2, ago=4000 * DAY)
    keeping = keeper(house, inbox_window=None)
    assert keeping.plan().inbox == 0
    await keeping.run_once()
    assert len(house.inbox()) == 2


async def test_a_relay_that_archives_nothing_leaves_alone_what_another_one_archives(
    house: House,
) -> None:
    """As `outbox-saga relay --inbox-window 1h` keeps house, beside one with --archive-window."""
    house.say("a")
    publish(house)
    house.advance(400 * DAY)
    handle(house, 2, ago=2 * DAY)
    keeping = keeper(house, archive_window=None, inbox_window=DAY)
    planned = keeping.plan()
    await keeping.run_once()
    assert (without_days(planned), planned.days_made, planned.days_dropped) == ((2, 0, 0), (), ())
    assert [word_of(sent.body) for sent in archived(house)] == ["a"]
    assert house.inbox() == []


def saga(
    house: House, state: str, ended: float | None, *, entries: int = 2, key: str | None = None
) -> UUID:
    """One that ended so long ago, with its history; None: it goes on, since long ago."""
    id_, tables, long_ago = new_id(), house.tables, house.clock.now(-400 * DAY)
    with house.eyes.begin() as connection:
        connection.execute(
            sa.insert(tables.saga).values(
                id=id_,
                source="shop",
                name="order",
                version=1,
                shape="s",
                business_key=key,
                correlation_id=str(id_),
                state=state,
                revision=3,
                data="{}",
                progress="{}",
                input_hash=b"0" * 32,
                epoch=1,
                started_at=long_ago,
                updated_at=long_ago,
                ended_at=None if ended is None else house.clock.now(-ended),
            )
        )
        for number in range(entries):
            connection.execute(
                sa.insert(tables.saga_history).values(
                    saga_id=id_, number=number, revision=number, transition="t", at=long_ago
                )
            )
    return id_


def barrier(house: House, ago: float, *, step: str = "ship", generation: int = 0) -> UUID:
    """Something came of a command so long ago."""
    id_ = new_id()
    with house.eyes.begin() as connection:
        connection.execute(
            sa.insert(house.tables.barrier).values(
                saga_id=id_,
                step=step,
                generation=generation,
                state="done",
                answer="{}",
                updated_at=house.clock.now(-ago),
            )
        )
    return id_


async def test_sagas_go_that_ended_for_good_before_their_window_with_all_their_history(
    house: House,
) -> None:
    gone = {saga(house, "completed", 31 * DAY), saga(house, "compensated", 40 * DAY, entries=5)}
    kept = {
        saga(house, "completed", 20 * DAY),
        saga(house, "stuck", 40 * DAY),
        saga(house, "running", None),
    }
    keeping = keeper(house, saga_window=30 * DAY, batch=1)
    assert keeping.plan().sagas == 2

    pruned = await keeping.run_once()

    assert pruned.sagas == 2
    assert {row.id for row in house.rows(house.tables.saga)} == kept
    assert {row.saga_id for row in house.rows(house.tables.saga_history)} == kept
    assert not gone & kept


async def test_a_saga_with_a_business_key_goes_only_if_it_is_said_so(house: House) -> None:
    """Its row is what makes starting it again the same saga."""
    saga(house, "completed", 31 * DAY, key="order:7")
    saga(house, "completed", 31 * DAY)
    keeping = keeper(house, saga_window=30 * DAY)
    assert (keeping.plan().sagas, (await keeping.run_once()).sagas) == (1, 1)
    assert [row.business_key for row in house.rows(house.tables.saga)] == ["order:7"]
    assert len(house.rows(house.tables.saga_history)) == 2

    all_of_them = keeper(house, saga_window=30 * DAY, keyed_sagas=True)
    assert (all_of_them.plan().sagas, (await all_of_them.run_once()).sagas) == (1, 1)
    assert house.rows(house.tables.saga) == house.rows(house.tables.saga_history) == []


async def test_a_saga_that_goes_on_again_while_it_is_pruned_stays_with_its_history(
    house: House,
) -> None:
    """A call that came late opens a compensated one again."""
    opened, over = (saga(house, "compensated", 31 * DAY) for _ in range(2))
    keeping = keeper(house, saga_window=30 * DAY)
    engine = keeping.database.program_engine

    moved: list[str] = []

    def reopen(*arguments: Any) -> None:
        if arguments[2].lstrip().startswith("DELETE FROM outbox_saga_saga ") and not moved:
            moved.append("while it was pruned")
            move(arguments[0] if house.name == "sqlite" else None)

    def move(connection: sa.Connection | None) -> None:
        table = house.tables.saga
        statement = sa.update(table).where(table.c.id == opened)
        values = {"state": "compensating", "ended_at": None}
        if connection is not None:  # it has one writer
            connection.execute(statement.values(values))
            return
        with house.eyes.begin() as another:
            another.execute(statement.values(values))

    event.listen(engine, "before_cursor_execute", reopen)
    assert (await keeping.run_once()).sagas == 1

    assert {row.id for row in house.rows(house.tables.saga)} == {opened}
    assert [row.saga_id for row in house.rows(house.tables.saga_history)] == [opened] * 2
    assert over != opened


async def test_notes_of_commands_go_when_they_are_past_their_window(house: House) -> None:
    for number in range(3):
        barrier(house, 91 * DAY, step=f"s{number}", generation=number)
    kept = barrier(house, 80 * DAY)
    keeping = keeper(house, barrier_window=90 * DAY, batch=2)
    assert keeping.plan().barriers == 3

    pruned = await keeping.run_once()

    assert pruned.barriers == 3
    assert [row.saga_id for row in house.rows(house.tables.barrier)] == [kept]


async def test_without_a_window_no_saga_and_no_note_of_a_command_ever_goes(house: House) -> None:
    saga(house, "completed", 4000 * DAY)
    barrier(house, 4000 * DAY)
    keeping = keeper(house)
    planned = keeping.plan()
    await keeping.run_once()
    assert (planned.sagas, planned.barriers) == (0, 0)
    assert len(house.rows(house.tables.saga)) == len(house.rows(house.tables.barrier)) == 1


async def test_no_transaction_removes_more_than_a_batch(house: House) -> None:
    handle(house, 7, ago=31 * DAY)
    for number in range(5):
        house.say(number)
    publish(house)
    house.advance(4 * DAY)
    keeping = keeper(house, batch=3)
    engine = keeping.database.program_engine
    counts: list[int] = []

    def note(*arguments: Any) -> None:
        statement = arguments[2].lstrip()
        if statement.startswith("DELETE"):
            counts.append(arguments[1].rowcount)

    event.listen(engine, "after_cursor_execute", note)
    pruned = await keeping.run_once()

    assert (pruned.inbox, pruned.archive) == (7, 5)
    assert max(counts) == 3
    assert sum(counts) == 12


async def test_one_runner_keeps_house_and_another_takes_over_when_it_dies(
    house: House,
) -> None:
    handle(house, 4, ago=31 * DAY)
    first, second = keeper(house, batch=1), keeper(house)
    round_ = first.batches()
    while not next(round_).inbox:
        pass

    with pytest.raises(AlreadyRunning, match=r"process \d+ on"):
        await second.run_once()
    assert len(house.inbox()) == 3

    house.advance(61)  # it has died, or stands still
    assert (await second.run_once()).inbox == 3
    third = keeper(house).batches()
    handle(house, 2, ago=31 * DAY)
    assert next(third).inbox == 2
    with pytest.raises(AlreadyRunning):
        next(round_)


async def test_many_runners_at_once_remove_everything_once(house: House) -> None:
    handle(house, 20, ago=31 * DAY)

    async def keep() -> int:
        total = 0
        for _ in range(3):
            try:
                total += (await keeper(house, batch=2).run_once()).inbox
            except AlreadyRunning:
                continue
        return total

    counts = await asyncio.wait_for(asyncio.gather(*(keep() for _ in range(4))), PATIENCE * 2)
    while house.inbox():
        counts.append((await keeper(house).run_once()).inbox)
    assert sum(counts) == 20


async def test_it_keeps_house_again_and_again_until_it_is_stopped(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "outbox_saga.housekeeping")
    stop = asyncio.Event()
    keeping = keeper(house, interval=0.01)
    handle(house, 1, ago=31 * DAY)
    running = asyncio.create_task(keeping.run(stop))
    await asyncio.to_thread(house.until, lambda: not house.inbox(), "the first round")
    handle(house, 1, ago=31 * DAY)
    await asyncio.to_thread(house.until, lambda: not house.inbox(), "another round")
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    told = [record.getMessage() for record in caplog.records]
    assert sum("1 notes of the inbox" in line for line in told) == 2
    with house.eyes.connect() as connection:
        (row,) = house.rows(house.tables.process)
        assert row.until <= house.clock.read(connection)


async def test_a_stop_ends_a_round_after_its_batch(house: House) -> None:
    handle(house, 5, ago=31 * DAY)
    stop = asyncio.Event()

    def told(pruned: Pruned) -> None:
        if pruned.inbox:
            stop.set()

    pruned = await keeper(house, batch=1).run_once(stop, told=told)

    assert (pruned.inbox, len(house.inbox())) == (1, 4)


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_database_that_goes_away_ends_a_round_and_not_the_housekeeping(
    house: House,
) -> None:
    handle(house, 1, ago=31 * DAY)
    stop = asyncio.Event()
    keeping = keeper(house, interval=0.01)
    round_ = keeping.batches()
    while not next(round_).inbox:
        pass
    house.cut_connections()
    handle(house, 1, ago=31 * DAY)
    running = asyncio.create_task(keeping.run(stop))
    await asyncio.to_thread(house.until, lambda: not house.inbox(), "the next round")
    stop.set()
    await asyncio.wait_for(running, PATIENCE)


@pytest.mark.parametrize(
    "options",
    [
        {"archive_window": -1.0},
        {"inbox_window": float("nan")},
        {"inbox_window": 0.0},
        {"inbox_window": 3599},
        {"process_window": float("inf")},
        {"saga_window": 86_399.0},
        {"saga_window": float("nan")},
        {"barrier_window": 3600.0},
        {"barrier_window": float("inf")},
        {"interval": 0.0},
        {"batch": 0},
        {"pause": -0.1},
    ],
)
def test_a_window_that_cannot_be_meant_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Housekeeping(Database("sqlite:///nowhere.db"), **options)


# --- the days of the archive (PostgreSQL) --------------------------------------------------------


def days(house: House) -> list[dt.date]:
    with house.eyes.begin() as connection:
        return partitions.partition_days(connection, house.tables)


def at_noon(house: House) -> None:
    """Days begin and end at midnight, and tests run at any time."""
    with house.eyes.begin() as connection:
        now = house.clock.read(connection)
    noon = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(12), dt.UTC)
    house.advance((noon - now).total_seconds())


def today(house: House) -> dt.date:
    with house.eyes.begin() as connection:
        return house.clock.read(connection).date()


def stored_in(house: House) -> dict[str, list[str]]:
    """The words in each partition."""
    archive = house.tables.archive
    with house.eyes.begin() as connection:
        statement = sa.select(sa.literal_column("CAST(tableoid AS regclass)"), archive.c.body)
        found: dict[str, list[str]] = {}
        for name, body in connection.execute(statement.order_by(archive.c.position)):
            found.setdefault(str(name).removeprefix(archive.name), []).append(word_of(body))
        return found


@pytest.mark.databases("postgres18", "postgres15")
async def test_days_are_made_ahead_and_dropped_whole_when_they_are_past(house: House) -> None:
    at_noon(house)
    first = today(house)
    assert (await keeper(house).run_once()).days_made == tuple(
        first + dt.timedelta(days=n) for n in range(partitions.AHEAD + 1)
    )
    house.say("first day")
    publish(house)
    house.advance(DAY)
    house.say("second day")
    publish(house)
    assert stored_in(house) == {
        f"_{first:%Y%m%d}": ["first day"],
        f"_{first + dt.timedelta(days=1):%Y%m%d}": ["second day"],
    }
    assert Archive(house.database).replay(ADA).run().messages == 2

    house.advance(2 * DAY)  # the first day ended less than the window ago
    pruned = await keeper(house).run_once()
    assert (pruned.days_dropped, pruned.archive) == ((), 0)
    assert pruned.days_made[-1] == first + dt.timedelta(days=3 + partitions.AHEAD)
    house.advance(DAY)
    plan = keeper(house).plan()
    assert (plan.days_dropped, plan.archive) == ((first,), 1)  # the second day's stays with it
    pruned = await keeper(house).run_once()
    assert (pruned.days_dropped, pruned.archive) == ((first,), 0)
    assert list(stored_in(house)) == [f"_{first + dt.timedelta(days=1):%Y%m%d}"]
    with house.eyes.begin() as connection:
        assert check(connection) == []


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_day_that_has_rows_already_stays_where_it_is_until_it_is_past(
    house: House,
) -> None:
    at_noon(house)
    house.say("early")
    publish(house)
    first = today(house)

    pruned = await keeper(house).run_once()

    assert first not in pruned.days_made
    assert len(pruned.days_made) == partitions.AHEAD
    assert stored_in(house) == {"_rest": ["early"]}
    house.advance(3 * DAY + 60)
    assert (await keeper(house).run_once()).archive == 1
    assert archived(house) == []


@pytest.mark.databases("postgres18", "postgres15")
async def test_days_wait_for_whoever_uses_the_archive_and_nobody_waits_long_for_them(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    at_noon(house)
    caplog.set_level(logging.INFO, "outbox_saga.housekeeping")
    await keeper(house).run_once()
    house.say("a")
    publish(house)
    handle(house, 1, ago=41 * DAY)
    house.advance(10 * DAY)
    with house.eyes.begin() as reader:
        reader.execute(sa.select(house.tables.archive)).all()  # holds its lock until it ends
        pruned = await keeper(house).run_once()
        assert pruned.days_dropped == ()
        assert pruned.inbox == 1
    told = [record.getMessage() for record in caplog.records]
    assert any("not dropped now: in use" in line for line in told)
    assert len((await keeper(house).run_once()).days_dropped) == partitions.AHEAD + 1


@contextmanager
def as_another_user(house: House, database: Database) -> Iterator[None]:
    """The database's programs work as a user who may change rows, and owns nothing."""
    with house.eyes.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS keeper")
        connection.exec_driver_sql("CREATE ROLE keeper LOGIN")
        connection.exec_driver_sql("GRANT USAGE ON SCHEMA public TO keeper")
        connection.exec_driver_sql(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO keeper"
        )

    def as_keeper(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL ROLE keeper")

    event.listen(database.program_engine, "begin", as_keeper)
    try:
        yield
    finally:
        event.remove(database.program_engine, "begin", as_keeper)
        with house.eyes.begin() as connection:
            connection.exec_driver_sql("DROP OWNED BY keeper")
            connection.exec_driver_sql("DROP ROLE keeper")


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_user_who_does_not_own_the_archive_prunes_it_row_by_row(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.say("a")
    publish(house)
    house.advance(4 * DAY)
    keeping = keeper(house)

    with as_another_user(house, keeping.database):
        pruned = await keeping.run_once()

    assert (pruned.archive, pruned.days_made) == (1, ())
    assert "does not own the archive" in caplog.text
    assert archived(house) == []


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_right_that_is_missing_ends_a_round_and_not_the_housekeeping(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def may(said: str) -> None:
        with house.eyes.begin() as connection:
            connection.exec_driver_sql(said)

    handle(house, 1, ago=31 * DAY)
    keeping, stop = keeper(house, interval=0.01), asyncio.Event()
    with as_another_user(house, keeping.database):
        may("REVOKE DELETE ON outbox_saga_inbox FROM keeper")
        running = asyncio.create_task(keeping.run(stop))
        await asyncio.to_thread(house.until, lambda: "next round" in caplog.text, "a round")
        may("GRANT DELETE ON outbox_saga_inbox TO keeper")
        await asyncio.to_thread(house.until, lambda: not house.inbox(), "another round")
        stop.set()
        await asyncio.wait_for(running, PATIENCE)
    assert "InsufficientPrivilege 42501" in caplog.text


@pytest.mark.databases("postgres18", "postgres15")
async def test_days_that_somebody_else_owns_are_emptied_row_by_row(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    at_noon(house)
    await keeper(house).run_once()  # the owner has made days
    house.say("a", "b", "c")
    publish(house)
    house.advance(DAY)
    house.say("young")
    publish(house)
    house.advance(3 * DAY)
    keeping = keeper(house, batch=2)

    with as_another_user(house, keeping.database):
        planned = keeping.plan()
        seen: list[int] = []
        pruned = await keeping.run_once(told=lambda so_far: seen.append(so_far.archive))

    assert (planned.archive, pruned.archive, seen[:2]) == (3, 3, [2, 3])
    assert "its rows are removed one by one" in caplog.text
    assert [word_of(row.body) for row in archived(house)] == ["young"]


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_plan_leaves_out_what_waits_for_the_end_of_its_day(house: House) -> None:
    at_noon(house)
    await keeper(house).run_once()
    house.say("a", "b")
    publish(house)
    house.advance(7200)

    keeping = keeper(house, archive_window=3600.0)

    assert keeping.plan().archive == 0
    assert (await keeping.run_once()).archive == 0
    house.advance(DAY)
    assert keeping.plan().archive == 2
    assert len((await keeping.run_once()).days_dropped) == 1
    assert (keeping.plan().archive, archived(house)) == (0, [])


@pytest.mark.databases("postgres18", "postgres15")
async def test_without_a_window_no_days_are_made_and_all_there_are_go(house: House) -> None:
    at_noon(house)
    await keeper(house).run_once()
    house.say("a")
    publish(house)
    house.advance(DAY)
    house.say("of a day that still runs")
    publish(house)
    house.advance(1)
    keeping = keeper(house, archive_window=0.0)

    planned = keeping.plan()
    pruned = await keeping.run_once()

    assert (planned.archive, len(planned.days_dropped)) == (2, partitions.AHEAD + 1)
    assert (len(pruned.days_dropped), pruned.days_made) == (partitions.AHEAD + 1, ())
    assert archived(house) == []


async def test_what_was_pruned_from_the_archive_leaves_dead_letters_alone(house: House) -> None:
    house.say("a", key="k")
    await die(house, "a")
    house.advance(100 * DAY)
    await keeper(house).run_once()
    with house.database.begin() as connection:
        assert len(find_letters(connection, house.tables)) == 1
    assert letter_of(house, "a").parked


# --- what one kind of things is in the way of ----------------------------------------------------


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_view_on_one_day_keeps_neither_other_days_nor_other_tables(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await keeper(house).run_once()
    with house.eyes.begin() as connection:
        first, second, *_ = partitions.partition_days(connection, house.tables)
        name = f"{house.tables.archive.name}_{first:%Y%m%d}"
        quoted = connection.dialect.identifier_preparer.format_table(
            sa.table(name, schema=house.tables.schema)
        )
        connection.exec_driver_sql(f"CREATE VIEW seen_by_somebody AS SELECT * FROM {quoted}")
    try:
        handle(house, 1, ago=31 * DAY)
        house.advance(10 * DAY)
        with pytest.raises(DBAPIError):
            await keeper(house).run_once()
        assert house.inbox() == []
        with house.eyes.begin() as connection:
            days = partitions.partition_days(connection, house.tables)
        assert first in days
        assert second not in days
        assert len(days) > 1  # those to come were made
        assert f"left the archive's {first}, not dropped alone" in caplog.text
    finally:
        with house.eyes.begin() as connection:
            connection.exec_driver_sql("DROP VIEW seen_by_somebody")


async def test_a_trouble_that_lasts_is_told_when_the_round_has_ended_and_the_next_one_tries(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> int:
        raise DBAPIError.instance("DELETE", None, refusal, type(refusal))

    refusal = Exception("permission denied")
    handle(house, 1, ago=31 * DAY)
    monkeypatch.setattr(pruning, "prune_archive", refused)
    with pytest.raises(DBAPIError, match="permission denied"):
        await keeper(house).run_once()
    assert house.inbox() == []
    monkeypatch.undo()
    await keeper(house).run_once()
