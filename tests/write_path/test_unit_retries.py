"""A unit that the database gave up is run again as a whole; no other is, and none twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.errors import CommitUnknown
from outbox_saga.retries import Retry
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.unit_retries import retry_unit
from tests.write_path.shop import INSERT, Order, Shop
from tests.write_path.units import Kind, Runner, conflict, kill, write

POSTGRES = ("postgres18", "postgres15")
servers = pytest.mark.databases(*POSTGRES, "mariadb")


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def run(shop: Shop, kind: Kind) -> Runner:
    return Runner(shop, kind)


def notes_of(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


# --- what is run again ---------------------------------------------------------------------------


def test_a_unit_that_nothing_happens_to_runs_once_and_its_value_comes_back(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> str:
        write(session, "row")
        return "value"

    assert run(body, source="the till") == "value"
    assert (shop.notes(), shop.words(), run.pauses) == (["row"], ["attempt 1"], [])
    assert '"source":"the till"' in shop.rows()[0].headers


@servers
def test_two_units_that_deadlock_both_end_committed_and_the_loser_s_first_messages_never_leave(
    shop: Shop, kind: Kind
) -> None:
    shop.execute("insert into shop_order (id, note) values (1, 'a'), (2, 'b')")
    both_hold_one = threading.Barrier(2, timeout=20)

    def crossing(first: int, second: int) -> Any:
        def body(session: Session, attempt: int) -> None:
            for row in (first, second):
                longer = {"note": Order.note + str(first)}
                session.execute(sa.update(Order).where(Order.id == row).values(longer))
                if attempt == 1 and row == first:
                    both_hold_one.wait()

        return body

    ended = [threading.Event(), threading.Event()]
    # the loser waits for the winner: at once, it might take its first row before it again
    runners = [
        Runner(shop, kind, name=name, asleep=lambda other=other: other.wait(20))  # type: ignore[misc]
        for name, other in (("one", ended[1]), ("two", ended[0]))
    ]

    def to_the_end(number: int, body: Any) -> None:
        runners[number](body)
        ended[number].set()

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(to_the_end, 0, crossing(1, 2))
        two = threads.submit(to_the_end, 1, crossing(2, 1))
        one.result()
        two.result()

    assert sorted(runner.attempts for runner in runners) == [1, 2]
    assert sorted(shop.words()) == sorted(f"{r.name} {r.attempts}" for r in runners)
    assert [sorted(note) for note in shop.notes()] == [["1", "2", "a"], ["1", "2", "b"]]


@pytest.mark.databases(*POSTGRES)
def test_an_update_of_what_changed_since_it_was_read_is_run_again_at_repeatable_read(
    shop: Shop, run: Runner
) -> None:
    shop.execute("insert into shop_order (id, note) values (1, 'old')")
    run.engine_options = {"isolation_level": "REPEATABLE READ"}

    def body(session: Session, attempt: int) -> None:
        seen = session.scalar(sa.text("select note from shop_order"))
        if attempt == 1:
            shop.execute("update shop_order set note = 'new'")
        session.execute(sa.text("update shop_order set note = :note"), {"note": f"{seen}er"})

    run(body)
    assert (shop.notes(), shop.words(), run.attempts) == (["newer"], ["attempt 2"], 2)


@pytest.mark.databases(*POSTGRES)
def test_a_unit_that_only_its_commit_finds_unserializable_is_run_again(
    shop: Shop, run: Runner
) -> None:
    run.engine_options = {"isolation_level": "SERIALIZABLE"}
    other = shop.make_engine(isolation_level="SERIALIZABLE")
    at_commit: list[str | None] = []

    def remember(engine: sa.Engine) -> None:
        @event.listens_for(engine, "handle_error")
        def failed(context: Any) -> None:
            at_commit.append(context.statement)

    def body(session: Session, attempt: int) -> None:
        write(session, f"after {session.scalar(sa.text('select count(*) from shop_order'))}")
        if attempt == 1:
            with Session(other) as skewed:
                count = skewed.scalar(sa.text("select count(*) from shop_order"))
                write(skewed, f"other after {count}")
                skewed.commit()

    run.prepare = remember
    run(body)
    assert (shop.notes(), run.attempts) == (["other after 0", "after 1"], 2)
    assert shop.words() == ["attempt 2"]
    assert len(at_commit) == 1


@pytest.mark.databases("sqlite")
def test_a_unit_that_finds_the_file_busy_is_run_again(shop: Shop, run: Runner) -> None:
    run.engine_options = {"connect_args": {"timeout": 0}}
    with shop.make_engine().connect() as other:
        other.exec_driver_sql("select 1")  # its transaction is IMMEDIATE
        run.asleep = other.rollback

        run(lambda session, _: write(session, "row"))

    # found busy when it publishes first, which begins
    assert (shop.notes(), shop.words(), len(run.pauses)) == (["row"], ["attempt 2"], 1)


@servers
def test_a_unit_whose_connection_is_killed_in_the_middle_is_run_again_on_another_one(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, f"first half {attempt}")
        if attempt == 1:
            kill(shop, session)
        write(session, f"second half {attempt}")

    run(body)
    assert shop.notes() == ["first half 2", "second half 2"]
    assert (shop.words(), run.attempts) == (["attempt 2"], 2)


@servers
def test_a_unit_that_loses_its_connection_before_commit_is_sent_is_run_again(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> None:
        session.add(Order(note=f"flushed by the commit {attempt}"))
        if attempt == 1:
            with session.no_autoflush:
                kill(shop, session)

    run(body)
    assert shop.notes() == ["flushed by the commit 2"]
    assert (shop.words(), run.attempts) == (["attempt 2"], 2)


@servers
def test_a_unit_that_loses_its_connection_before_its_messages_are_written_is_run_again(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, f"row {attempt}")
        if attempt == 1:
            kill(shop, session)

    run(body)
    assert (run.attempts, shop.notes(), shop.words()) == (2, ["row 2"], ["attempt 2"])


@servers
def test_a_unit_whose_messages_cannot_be_written_now_is_run_again(shop: Shop, run: Runner) -> None:
    mysql, outbox = shop.name == "mariadb", shop.tables.outbox.name
    wait = "set lock_wait_timeout = 1" if mysql else "set local lock_timeout = '1ms'"
    lock = f"lock tables {outbox} write" if mysql else f"lock table {outbox}"

    def body(session: Session, attempt: int) -> None:
        write(session, f"row {attempt}")
        session.execute(sa.text(wait))

    with shop.make_engine().connect() as other:
        other.exec_driver_sql(lock)
        run.asleep = other.invalidate
        run(body)
    assert (run.attempts, shop.notes(), shop.words()) == (2, ["row 2"], ["attempt 2"])


@servers
def test_every_attempt_has_a_session_of_its_own_and_begins_with_nothing_of_the_last(
    shop: Shop, run: Runner
) -> None:
    left: list[tuple[int, str | None]] = []

    def body(session: Session, attempt: int) -> None:
        left.append(
            (len(session.new), session.scalar(sa.text("select max(note) from shop_order")))
        )
        session.add(Order(note=f"row {attempt}"))
        session.flush()
        if attempt == 1:
            conflict(session)

    run(body)
    assert left == [(0, None)] * 2
    assert len(set(map(id, run.sessions))) == 2
    assert shop.notes() == ["row 2"]


# --- the end of it -------------------------------------------------------------------------------


@servers
def test_when_no_attempt_is_left_the_last_error_comes_as_it_was_and_says_how_many_there_were(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, "row")
        conflict(session)

    retry = Retry(max_attempts=4, initial=1.0, max_delay=3.0)
    with pytest.raises(OperationalError) as failed:
        run(body, retry=retry)

    assert "attempts: 4, and none is left" in notes_of(failed.value)
    assert len(failed.value.__notes__) == 1
    assert (run.attempts, shop.notes(), shop.words()) == (4, [], [])
    for pause, ceiling in zip(run.pauses, (1.0, 2.0, 3.0), strict=True):
        assert ceiling / 2 <= pause <= ceiling


class NotToday(Exception):
    pass


def test_what_business_code_raises_comes_at_once_and_bare(shop: Shop, run: Runner) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, "row")
        raise NotToday

    with pytest.raises(NotToday) as failed:
        run(body)
    assert notes_of(failed.value) == ""
    assert (run.attempts, run.pauses, shop.notes(), shop.words()) == (1, [], [], [])


@servers
def test_what_business_code_raises_on_a_later_attempt_says_that_it_was_one(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> None:
        if attempt == 1:
            conflict(session)
        raise NotToday

    with pytest.raises(NotToday) as failed:
        run(body)
    assert "Attempt 2" in notes_of(failed.value)
    assert run.attempts == 2


@servers
def test_what_business_code_raises_is_not_hidden_by_a_rollback_that_fails(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, "row")
        kill(shop, session)
        raise NotToday

    with pytest.raises(NotToday):
        run(body)
    assert (run.attempts, shop.notes(), shop.words()) == (1, [], [])


LOOKS_LIKE_IT = {
    "postgresql": "do $$ begin raise exception 'deadlock detected 40001'; end $$",
    "mysql": "signal sqlstate '45000' set message_text = 'Deadlock found (1213) 40001'",
}


@servers
def test_a_text_that_looks_like_a_deadlock_is_none(shop: Shop, run: Runner) -> None:
    statement = LOOKS_LIKE_IT["mysql" if shop.name == "mariadb" else "postgresql"]
    with pytest.raises(DBAPIError, match="40001"):
        run(lambda session, _: session.execute(sa.text(statement)))
    assert (run.attempts, shop.words()) == (1, [])


@servers
def test_what_fails_after_the_commit_is_not_run_again(shop: Shop, run: Runner) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, f"row {attempt}")

        @event.listens_for(session, "after_commit")
        def hook(_: Session) -> None:
            with Session(shop.engine) as another:
                conflict(another)

    with pytest.raises(OperationalError) as failed:
        run(body)
    assert "may be committed" in notes_of(failed.value)
    assert (run.attempts, shop.notes(), shop.words()) == (1, ["row 1"], ["attempt 1"])


@servers
def test_not_even_when_the_hook_was_there_before_us(shop: Shop) -> None:
    class Hooked(Session):
        pass

    @event.listens_for(Hooked, "after_commit", insert=True)
    def hook(_: Session) -> None:
        with Session(shop.engine) as another:
            conflict(another)

    run = Runner(shop, "sync", session_class=Hooked)
    with pytest.raises(OperationalError):
        run(lambda session, attempt: write(session, f"row {attempt}"))
    assert (run.attempts, shop.notes(), shop.words()) == (1, ["row 1"], ["attempt 1"])


@servers
def test_nor_when_the_hook_fails_at_a_commit_of_its_own(shop: Shop, run: Runner) -> None:
    engine = shop.make_engine()

    @event.listens_for(engine, "commit")
    def refused(connection: sa.Connection) -> None:
        with Session(shop.engine) as another:
            conflict(another)

    def body(session: Session, attempt: int) -> None:
        write(session, f"row {attempt}")

        @event.listens_for(session, "after_commit")
        def hook(_: Session) -> None:
            with Session(engine) as another:
                write(another, "never")
                another.commit()

    with pytest.raises(OperationalError):
        run(body)
    assert (run.attempts, shop.notes(), shop.words()) == (1, ["row 1"], ["attempt 1"])


@servers
def test_a_unit_whose_work_commits_by_itself_is_not_run_again(shop: Shop, run: Runner) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, f"row {attempt}")
        session.commit()
        conflict(session)

    with pytest.raises(OperationalError) as failed:
        run(body)
    assert "leave commit() and rollback() to retry_unit" in notes_of(failed.value)
    assert (run.attempts, shop.notes()) == (1, ["row 1"])


def test_a_unit_whose_work_commits_by_itself_and_goes_well_is_done(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> str:
        write(session, "row")
        session.commit()
        return "value"

    assert run(body) == "value"
    assert (shop.notes(), shop.words()) == (["row"], ["attempt 1"])


@servers
def test_a_unit_inside_somebody_s_transaction_is_not_run_again_without_the_rest_of_it(
    shop: Shop,
) -> None:
    attempts: list[int] = []

    def work(uow: UnitOfWork[Session]) -> None:
        attempts.append(1)
        write(uow.session, "inner")
        conflict(uow.session)

    with shop.engine.connect() as connection:
        connection.execute(INSERT, {"note": "outer"})
        with pytest.raises(OperationalError) as failed:
            retry_unit(sessionmaker(connection), work)
    assert "bind the sessionmaker to an engine" in notes_of(failed.value)
    assert (attempts, shop.notes()) == ([1], [])


@pytest.mark.databases(*POSTGRES)
def test_the_work_says_the_isolation_level_of_its_transaction(shop: Shop, run: Runner) -> None:
    def body(session: Session, attempt: int) -> Any:
        session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        return session.scalar(sa.text("show transaction_isolation"))

    run.publishes = False
    assert run(body) == "serializable"


@servers
def test_what_a_hook_before_the_commit_fails_on_is_run_again(shop: Shop, run: Runner) -> None:
    def body(session: Session, attempt: int) -> None:
        write(session, f"row {attempt}")

        @event.listens_for(session, "before_commit")
        def hook(hooked: Session) -> None:
            if attempt == 1:
                conflict(hooked)

    run(body)
    assert (run.attempts, shop.notes(), shop.words()) == (2, ["row 2"], ["attempt 2"])


# --- an outcome that nobody knows ----------------------------------------------------------------


@servers
def test_a_unit_that_loses_its_connection_during_commit_is_not_run_again(
    shop: Shop, run: Runner
) -> None:
    def cut_at_commit(engine: sa.Engine) -> None:
        @event.listens_for(engine, "commit")  # after ours: what is written is written
        def cut(connection: sa.Connection) -> None:
            mysql = shop.name == "mariadb"
            own = connection.scalar(
                sa.text("select connection_id()" if mysql else "select pg_backend_pid()")
            )
            shop.execute(f"kill {own}" if mysql else f"select pg_terminate_backend({own}, 5000)")

    run.prepare = cut_at_commit
    with pytest.raises((DBAPIError, CommitUnknown)) as failed:
        run(lambda session, _: write(session, "row"))
    assert "may be committed" in notes_of(failed.value)
    assert (run.attempts, run.pauses) == (1, [])


def losing(kind: Kind, *, committed: bool) -> Any:
    """A session class whose first commit ends without an answer."""
    from sqlalchemy.ext.asyncio import AsyncSession

    lost: list[bool] = []

    class Losing(Session):
        def commit(self) -> None:
            if lost:
                super().commit()
                return
            lost.append(True)
            if committed:
                super().commit()
            raise CommitUnknown

    class AsyncLosing(AsyncSession):
        async def commit(self) -> None:
            if lost:
                await super().commit()
                return
            lost.append(True)
            if committed:
                await super().commit()
            raise CommitUnknown

    return Losing if kind == "sync" else AsyncLosing


def once(session: Session, attempt: int) -> int:
    write(session, "row")
    return attempt


@pytest.mark.parametrize("committed", [True, False])
def test_resolve_decides_whether_it_is_done_or_run_again(
    shop: Shop, run: Runner, committed: bool
) -> None:
    run.session_class = losing(run.kind, committed=committed)
    asked: list[CommitUnknown] = []

    def resolve(unknown: CommitUnknown) -> bool:
        asked.append(unknown)
        return shop.notes() == ["row"]

    value = run(once, resolve=resolve)
    assert (value, len(asked), shop.notes()) == (1 if committed else 2, 1, ["row"])
    assert shop.words() == [f"attempt {value}"]


@pytest.mark.databases("sqlite")
def test_a_resolver_of_async_sessions_may_be_async(shop: Shop) -> None:
    async def resolve(unknown: CommitUnknown) -> bool:
        return True

    run = Runner(shop, "async", session_class=losing("async", committed=True))
    assert run(once, resolve=resolve) == 1


@pytest.mark.databases("sqlite")
def test_without_a_resolver_the_outcome_stays_unknown(shop: Shop, run: Runner) -> None:
    run.session_class = losing(run.kind, committed=True)
    with pytest.raises(CommitUnknown) as failed:
        run(once)
    assert "may be committed" in notes_of(failed.value)
    assert (run.attempts, shop.notes()) == (1, ["row"])


@pytest.mark.databases("sqlite")
def test_with_no_attempt_left_what_is_certainly_not_committed_is_raised(
    shop: Shop, run: Runner
) -> None:
    run.session_class = losing(run.kind, committed=False)
    with pytest.raises(CommitUnknown) as failed:
        run(once, resolve=lambda _: False, retry=Retry(max_attempts=1))
    assert "was rolled back; attempts: 1" in notes_of(failed.value)


async def late(unknown: CommitUnknown) -> bool:
    return True


def broken(unknown: CommitUnknown) -> bool:
    raise LookupError("hush")


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("resolve", "told"), [(broken, "LookupError"), (lambda _: None, "NoneType")]
)
def test_a_resolver_without_an_answer_leaves_the_outcome_unknown(
    shop: Shop, run: Runner, resolve: Any, told: str
) -> None:
    run.session_class = losing(run.kind, committed=True)
    with pytest.raises(CommitUnknown) as failed:
        run(once, resolve=resolve)
    assert told in notes_of(failed.value)
    assert "hush" not in notes_of(failed.value)
    assert (run.attempts, shop.notes()) == (1, ["row"])


@pytest.mark.databases("sqlite")
def test_a_promise_of_an_answer_is_none_to_sync_code(shop: Shop) -> None:
    run = Runner(shop, "sync", session_class=losing("sync", committed=True))
    with pytest.raises(CommitUnknown) as failed:
        run(once, resolve=late)
    assert "coroutine" in notes_of(failed.value)
    assert run.attempts == 1


@pytest.mark.databases("sqlite")
def test_an_unknown_outcome_of_another_unit_inside_is_nothing_to_resolve(
    shop: Shop, run: Runner
) -> None:
    def body(session: Session, attempt: int) -> None:
        raise CommitUnknown

    with pytest.raises(CommitUnknown):
        run(body, resolve=lambda _: pytest.fail("asked about another unit"))
    assert run.attempts == 1
