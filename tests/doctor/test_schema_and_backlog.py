"""On every database: our tables, and what waits in them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.messages import Event
from outbox_saga.queries.clock import Clock
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from outbox_saga_relay.doctor import Finding, Report, examine_database
from tests.doctor.examined import of, only
from tests.fixtures.databases import Database as EmptyDatabase

SECRET = "hunter2"
TABLES = tables_in(None)


NOCASE = """create table outbox_saga_inbox (
  consumer text collate nocase not null, message_id char(32) not null, body_hash blob not null,
  handled_at datetime not null, primary key (consumer, message_id)
)"""
FOLDED = """alter table outbox_saga_inbox modify message_id
  char(32) character set utf8mb4 collate utf8mb4_general_ci not null"""


class Told(Event, topic="talk"):
    word: str


class Waiting:
    """One prepared database, with whatever a test puts into it."""

    def __init__(self, database: EmptyDatabase) -> None:
        self.name = database.name
        self.url = database.url
        self.clock = Clock()
        self.engine = sa.create_engine(database.url, poolclass=sa.NullPool)

    def run(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def put(self, table: sa.Table, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.insert(table).values(**values))

    def say(self, *, key: str = SECRET) -> None:
        with self.engine.begin() as connection:
            UnitOfWork(connection).publish(Told(word=SECRET), key=key, headers={"x": SECRET})

    def report(self, later: float = 0.0) -> Report:
        database = Database(self.url, clock=Clock(shift=later))
        try:
            return examine_database(database)
        finally:
            database.engine.dispose()

    def found(self, check: str, later: float = 0.0) -> list[Finding]:
        return of(self.report(later), check)


@pytest.fixture
def waiting(prepared: EmptyDatabase) -> Waiting:
    return Waiting(prepared)


def message(**more: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "partition": 1,
        "topic": "talk",
        "key": SECRET,
        "headers": SECRET,
        "body": SECRET.encode(),
        "created_at": Clock().now(),
        **more,
    }


def failure(**more: Any) -> dict[str, Any]:
    return {"attempts": 3, "error_code": "too_large", "error": SECRET, **more}


def test_nothing_is_said_of_tables_as_they_should_be_in_which_nothing_waits(
    waiting: Waiting,
) -> None:
    report = waiting.report()

    ours = [f for f in report.findings if f.check.startswith(("schema.", "backlog."))]
    assert ours == []


def test_tables_that_are_missing_or_differ_are_named_with_the_command(waiting: Waiting) -> None:
    waiting.run("drop table outbox_saga_inbox")

    (found,) = waiting.found("schema.tables")

    assert (found.level, found.what) == ("error", "outbox_saga_inbox: missing")
    assert "outbox-saga db upgrade" in found.do


def test_a_database_without_our_tables_has_only_that_to_say(database: EmptyDatabase) -> None:
    report = Waiting(database).report()

    assert {f.level for f in of(report, "schema.tables")} == {"error"}
    backlog = [f for f in report.findings if f.check.startswith("backlog.")]
    assert {f.level for f in backlog} == {"unknown"}
    assert {f.do for f in backlog} == {"mend what the other checks found, and ask again"}


@pytest.mark.parametrize("schema", ["orders", "Orders"])
@pytest.mark.databases("postgres18")
def test_a_schema_of_its_own_is_where_it_is_looked_for(
    database: EmptyDatabase, schema: str
) -> None:
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        upgrade(connection, schema=schema)
    looked = Database(database.url, schema=schema)

    report = examine_database(looked)
    looked.engine.dispose()

    ours = ("schema.", "backlog.", "roles.powers", "postgresql.positions", "postgresql.autovacuum")
    bad = [f for f in report.findings if f.check.startswith(ours)]
    assert [f for f in bad if f.level != "warning"] == []
    assert {f.check for f in bad} <= {"roles.powers"}  # the tests' user is a superuser


def test_keys_that_do_not_compare_as_bytes_are_named(waiting: Waiting) -> None:
    waiting.run(
        *{
            "sqlite": (
                "drop table outbox_saga_inbox",
                NOCASE,
            ),
            "mariadb": (FOLDED,),
        }.get(
            waiting.name,
            ('alter table outbox_saga_inbox alter column consumer type text collate "default"',),
        )
    )

    only(waiting.found("schema.collations"), "error", "outbox_saga_inbox")


def test_messages_that_no_relay_publishes_are_named(waiting: Waiting) -> None:
    waiting.say()
    waiting.say()

    only(waiting.found("backlog.outbox"), "warning", "2 messages", "no relay")


def test_messages_that_a_relay_has_not_published_for_long_are_named(waiting: Waiting) -> None:
    waiting.say()
    lease = TABLES.partition_lease
    with waiting.engine.begin() as connection:
        connection.execute(sa.update(lease).values(owner=new_id(), until=Clock().now(10_000.0)))

    only(waiting.found("backlog.outbox"), "info", "1 messages")
    only(waiting.found("backlog.outbox", later=600.0), "warning", "the first for 10 min")


def test_delayed_messages_that_nobody_lets_in_are_named(waiting: Waiting) -> None:
    waiting.put(TABLES.delayed, **message(due_at=Clock().now()))

    assert waiting.found("backlog.delayed") == []
    only(waiting.found("backlog.delayed", later=600.0), "warning", "1 delayed")


def test_keys_that_are_parked_or_wait_are_counted(waiting: Waiting) -> None:
    for position, until in ((1, None), (2, None), (3, Clock().now(60.0))):
        waiting.put(
            TABLES.blocked_key,
            partition=1,
            key=SECRET,
            position=position,
            until=until,
            **failure(),
        )

    parked, waits = waiting.found("backlog.blocked_keys")

    assert (parked.level, waits.level) == ("info", "info")
    assert parked.what.startswith("2 keys are parked")
    assert waits.what.startswith("1 keys wait")


def handled_in_vain(consumer: str) -> dict[str, Any]:
    handled = message()
    del handled["partition"], handled["created_at"]
    handled["message_id"] = handled.pop("id")
    return {"consumer": consumer, "arrived_at": Clock().now(), **handled}


def test_dead_letters_are_counted_by_their_error_codes(waiting: Waiting) -> None:
    for position, code in ((1, "too_large"), (2, "too_large"), (3, "invalid_subject")):
        waiting.put(
            TABLES.dead_letter,
            **message(position=position, died_at=Clock().now()),
            **failure(error_code=code),
        )
    waiting.put(
        TABLES.inbox_waiting, **handled_in_vain("shop"), **failure(error_code="ValueError")
    )

    sent, received = waiting.found("backlog.dead_letters")

    assert sent.what == "3 dead letters that no broker took (2 too_large, 1 invalid_subject)"
    assert received.what == "1 dead letters that no handler took (1 ValueError)"


def test_messages_whose_consumer_nobody_runs_any_more_are_named(waiting: Waiting) -> None:
    waiting.put(
        TABLES.inbox_waiting, **handled_in_vain("old-name"), until=Clock().now(), **failure()
    )

    assert waiting.found("backlog.waiting") == []
    found = waiting.found("backlog.waiting", later=600.0)
    only(found, "warning", "1 messages that consumer old-name is to handle again")


def saga(**more: Any) -> dict[str, Any]:
    now = Clock().now()
    return {
        "id": new_id(),
        "source": "shop",
        "name": "fulfil",
        "version": 1,
        "shape": "x",
        "business_key": SECRET,
        "correlation_id": SECRET,
        "state": "running",
        "revision": 1,
        "data": SECRET,
        "progress": SECRET,
        "input_hash": b"x" * 32,
        "reason": SECRET,
        "epoch": 0,
        "started_at": now,
        "updated_at": now,
        **more,
    }


def test_sagas_that_are_stuck_or_have_no_orchestrator_are_counted(waiting: Waiting) -> None:
    waiting.put(TABLES.saga, **saga(state="stuck"))
    waiting.put(TABLES.saga, **saga(due_at=Clock().now()))

    only(waiting.found("backlog.sagas"), "info", "1 sagas fulfil are stuck")
    stuck, late = waiting.found("backlog.sagas", later=600.0)
    assert (late.level, stuck.level) == ("info", "warning")
    assert stuck.what.startswith("1 sagas are due")


def test_nothing_that_users_have_written_is_in_what_is_said(waiting: Waiting) -> None:
    waiting.say()
    waiting.put(TABLES.delayed, **message(due_at=Clock().now()))
    waiting.put(
        TABLES.dead_letter, **message(position=1, died_at=Clock().now(), trace=SECRET), **failure()
    )
    waiting.put(TABLES.blocked_key, partition=1, key=SECRET, position=1, until=None, **failure())
    waiting.put(TABLES.saga, **saga(state="stuck", due_at=Clock().now()))

    report = waiting.report(later=600.0)

    assert len([f for f in report.findings if f.check.startswith("backlog.")]) == 6
    assert SECRET not in str(report)
