"""A COMMIT whose answer never comes has an error of its own, and the database can be asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga import async_commit_outcome, commit_outcome, retry_unit
from outbox_saga.errors import CommitUnknown, ConfigurationError
from outbox_saga.queries.dialects import is_transient
from outbox_saga.queries.outbox import TRANSACTION, lock_numbers, take_key_locks
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from outbox_saga.watchdog import _watchdog
from tests.fixtures.databases import Database
from tests.write_path.between import Between, When, between
from tests.write_path.shop import Order, Said, Shop

pytestmark = pytest.mark.databases("postgres18", "postgres15", "mariadb")
LOST: list[When] = ["before the server has it", "before the answer comes back"]


@pytest.fixture
def line(shop: Shop) -> Iterator[Between]:
    with between(shop.url) as line:
        yield line


def committed(when: When) -> bool:
    return when != "before the server has it"


def known(shop: Shop, when: When) -> bool | None:
    """What the database can say of it: only PostgreSQL remembers what was rolled back."""
    if committed(when):
        return True
    return False if shop.name.startswith("postgres") else None


@pytest.mark.parametrize("when", LOST)
def test_a_commit_whose_answer_is_lost_says_so_and_the_database_knows(
    shop: Shop, line: Between, when: When
) -> None:
    engine, ids = shop.make_plain_engine(), list[UUID]()
    through = sa.create_engine(line.url)
    with pytest.raises(CommitUnknown) as told, Session(through) as session:  # noqa: SIM117
        with session.begin():
            session.add(Order(note="paid"))
            uow = UnitOfWork(session)
            ids.append(uow.publish(Said(word="a"), key="k"))
            ids.append(uow.publish(Said(word="b"), delay=60))
            line.lose = when
    through.dispose()
    unknown = told.value
    assert line.lost == 1
    assert sorted(unknown.message_ids) == sorted(ids)
    assert unknown.__cause__ is not None
    assert is_transient(unknown)
    assert commit_outcome(engine, unknown) is known(shop, when)
    assert shop.words() == (["a"] if committed(when) else [])
    assert shop.notes() == (["paid"] if committed(when) else [])


@pytest.mark.parametrize("when", LOST)
async def test_an_async_commit_whose_answer_is_lost_says_so_and_the_database_knows(
    shop: Shop, line: Between, when: When
) -> None:
    async_url = Database(shop.name, line.url).async_url
    through = create_async_engine(async_url)
    engine, ids = shop.make_plain_async_engine(), list[UUID]()
    with pytest.raises(CommitUnknown) as told:
        async with unit_of_work(async_sessionmaker(through)) as uow:
            ids.append(uow.publish(Said(word="a"), key="k"))
            line.lose = when
    await through.dispose()
    assert list(told.value.message_ids) == ids
    assert await async_commit_outcome(engine, told.value) is known(shop, when)
    await engine.dispose()
    assert shop.words() == (["a"] if committed(when) else [])


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("published", [True, False])
def test_a_commit_that_is_refused_is_no_unknown_one(shop: Shop, published: bool) -> None:
    """Of a deferred constraint, say: the server has answered. MariaDB checks none at COMMIT."""
    with shop.engine.begin() as connection:
        connection.execute(sa.text("drop table if exists promised"))
        connection.execute(
            sa.text("create table promised (n int unique deferrable initially deferred)")
        )
    with pytest.raises(DBAPIError, match="promised"), shop.engine.begin() as connection:
        if published:
            UnitOfWork(connection).publish(Said(word="a"))
        for _ in range(2):
            connection.execute(sa.text("insert into promised values (1)"))
    assert shop.words() == []


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("when", LOST)
def test_a_unit_that_may_be_committed_is_run_again_only_where_the_server_says_it_is_not(
    shop: Shop, line: Between, when: When
) -> None:
    engine, through = shop.make_plain_engine(), sa.create_engine(line.url)
    attempts: list[int] = []

    def work(uow: UnitOfWork[Session]) -> int:
        attempts.append(1)
        uow.session.add(Order(note="paid"))
        uow.publish(Said(word="a"), key="k")
        line.lose = when if len(attempts) == 1 else None
        return len(attempts)

    value = retry_unit(
        sessionmaker(through), work, resolve=lambda unknown: bool(commit_outcome(engine, unknown))
    )
    through.dispose()
    assert value == len(attempts) == (1 if committed(when) else 2)
    assert (shop.words(), shop.notes()) == (["a"], ["paid"])


def test_a_commit_without_messages_fails_as_the_driver_says(shop: Shop, line: Between) -> None:
    through = sa.create_engine(line.url)
    with pytest.raises(DBAPIError), Session(through) as session, session.begin():
        session.add(Order(note="paid"))
        session.flush()
        line.lose = "before the answer comes back"
    through.dispose()


async def test_an_async_unit_has_a_deadline_for_its_commit(shop: Shop, line: Between) -> None:
    through = create_async_engine(Database(shop.name, line.url).async_url)
    engine, ids = shop.make_plain_async_engine(), list[UUID]()
    work = unit_of_work(async_sessionmaker(through), commit_timeout=0.2)
    with pytest.raises(CommitUnknown) as told:
        async with work as uow:
            ids.append(uow.publish(Said(word="a"), key="k"))
            line.lose = "the answer hangs"
    assert list(told.value.message_ids) == ids
    assert await async_commit_outcome(engine, told.value) is True
    await engine.dispose()
    await through.dispose()
    assert shop.words() == ["a"]


def test_a_sync_unit_has_a_deadline_for_its_commit(shop: Shop, line: Between) -> None:
    through, ids = sa.create_engine(line.url), list[UUID]()
    work = unit_of_work(sessionmaker(through), commit_timeout=0.2)
    with pytest.raises(CommitUnknown) as told, work as uow:
        ids.append(uow.publish(Said(word="a"), key="k"))
        line.lose = "the answer hangs"
    through.dispose()
    assert list(told.value.message_ids) == ids
    assert commit_outcome(shop.engine, told.value) is True
    assert shop.words() == ["a"]


@pytest.mark.parametrize("delayed", [False, True])
async def test_an_async_deadline_that_passes_before_the_commit_is_sent_leaves_nothing(
    shop: Shop, delayed: bool
) -> None:
    """The messages' own insert waits for another writer of its key; a delayed one is written."""
    engine = shop.make_plain_async_engine()
    with shop.engine.begin() as holder:
        take_key_locks(holder, shop.tables, lock_numbers(["k"]))
        with pytest.raises(TimeoutError, match="nothing was committed"):
            async with unit_of_work(async_sessionmaker(engine), commit_timeout=0.2) as uow:
                if delayed:
                    uow.publish(Said(word="later"), key="k", delay=60)
                uow.publish(Said(word="a"), key="k")
    await engine.dispose()
    assert shop.words() == []


def test_a_deadline_that_passes_before_the_commit_is_sent_leaves_nothing(shop: Shop) -> None:
    engine = shop.make_plain_engine()
    with shop.engine.begin() as holder:
        take_key_locks(holder, shop.tables, lock_numbers(["k"]))
        work = unit_of_work(sessionmaker(engine), commit_timeout=0.2)
        with pytest.raises(TimeoutError, match="nothing was committed"), work as uow:
            uow.publish(Said(word="a"), key="k")
    assert shop.words() == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_deadline_that_cannot_be_meant_is_refused(shop: Shop, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="commit_timeout"):
        unit_of_work(sessionmaker(shop.engine), commit_timeout=seconds)


@pytest.mark.databases("postgres18", "postgres15")
def test_a_transaction_in_progress_is_waited_for(shop: Shop) -> None:
    """The server may still be at it when the client has lost it."""
    engine, found = shop.make_plain_engine(), list[bool | None]()
    asked = threading.Event()
    event.listen(engine, "after_cursor_execute", lambda *_: asked.set())
    with shop.engine.connect() as connection:
        transaction = connection.execute(sa.text(f"select {TRANSACTION}")).scalar_one()
        unknown = CommitUnknown((), transaction)
        asking = threading.Thread(
            target=lambda: found.append(commit_outcome(engine, unknown, patience=60))
        )
        asking.start()
        assert asked.wait(60)
        connection.rollback()
    asking.join()
    assert found == [False]


@pytest.mark.databases("postgres18", "postgres15")
def test_one_that_stays_in_progress_is_not_told_of(shop: Shop) -> None:
    with shop.engine.connect() as connection:
        transaction = connection.execute(sa.text(f"select {TRANSACTION}")).scalar_one()
        unknown = CommitUnknown((), transaction)
        assert commit_outcome(shop.make_plain_engine(), unknown, patience=0.2) is None


def test_a_server_that_does_not_answer_the_question_is_not_waited_for_any_longer(
    shop: Shop, line: Between
) -> None:
    through = sa.create_engine(line.url)
    with through.connect() as connection:
        connection.execute(sa.text("select 1"))  # what a connection asks first is over
    line.lose = "every answer hangs"
    assert commit_outcome(through, CommitUnknown((uuid4(),), None), patience=0.3) is None
    through.dispose()


async def test_nor_is_it_by_an_async_question(shop: Shop, line: Between) -> None:
    through = create_async_engine(Database(shop.name, line.url).async_url)
    async with through.connect() as connection:
        await connection.execute(sa.text("select 1"))
    line.lose = "every answer hangs"
    unknown = CommitUnknown((uuid4(),), None)
    assert await async_commit_outcome(through, unknown, patience=0.3) is None
    await through.dispose()


def test_a_deadline_holds_for_a_connection_that_the_flush_is_the_first_to_need(
    shop: Shop,
) -> None:
    engine = shop.make_plain_engine()
    with shop.engine.connect() as holder:
        holder.execute(sa.text("insert into shop_order (id, note) values (77, 'other')"))
        work = unit_of_work(sessionmaker(engine), commit_timeout=0.2)
        with pytest.raises(TimeoutError, match="nothing was committed"), work as uow:
            uow.session.add(Order(id=77, note="paid"))
        holder.rollback()
    assert shop.notes() == []


@pytest.mark.databases("postgres18", "postgres15")
def test_what_the_server_answers_after_the_deadline_is_told_as_it_answered(shop: Shop) -> None:
    """Not that time was up: it will fail in the same way when it is done again."""
    with shop.engine.begin() as connection:
        connection.execute(sa.text("drop table if exists promised"))
        connection.execute(
            sa.text("create table promised (n int unique deferrable initially deferred)")
        )
    engine = shop.make_plain_engine()

    class Late(Session):
        pass

    work = unit_of_work(sessionmaker(engine, class_=Late), commit_timeout=0.05)

    @event.listens_for(engine, "handle_error", insert=True)
    def wait_until_time_is_up(context: sa.engine.ExceptionContext) -> None:
        (watch,) = _watchdog._watches.values()
        over = threading.Event()
        watch.cuts[:] = [over.set]
        assert over.wait(60)

    with pytest.raises(DBAPIError, match="promised"), work as uow:
        for _ in range(2):
            uow.session.execute(sa.text("insert into promised values (1)"))
