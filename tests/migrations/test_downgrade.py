"""downgrade(): takes our tables away, unless a message or a saga would be lost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from outbox_saga.tables import tables_in
from outbox_saga_migrations import (
    DowngradeRefused,
    UpgradeBusy,
    UpgradeRefused,
    check,
    current,
    downgrade,
    head,
    upgrade,
)
from tests.migrations.catalog import facts, table_names

TABLES = tables_in()
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MESSAGE = {
    "id": UUID(int=1),
    "partition": 0,
    "topic": "orders",
    "headers": "{}",
    "body": b"{}",
    "created_at": NOW,
}
DEAD = {**MESSAGE, "position": 1, "died_at": NOW, "attempts": 1, "error_code": "x", "error": "x"}
SAGA = {
    "id": UUID(int=2),
    "source": "shop",
    "name": "fulfil",
    "version": 1,
    "shape": "x",
    "correlation_id": "c",
    "state": "running",
    "revision": 1,
    "data": "{}",
    "progress": "{}",
    "input_hash": bytes(32),
    "epoch": 0,
    "started_at": NOW,
    "updated_at": NOW,
}


@pytest.fixture
def upgraded(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        upgrade(connection)
    return engine


def test_it_leaves_nothing_and_can_be_undone(upgraded: sa.Engine) -> None:
    with upgraded.begin() as connection:
        before = facts(connection)
        downgrade(connection)

    with upgraded.begin() as connection:
        assert table_names(connection) == set()
        downgrade(connection)
        upgrade(connection)

    with upgraded.begin() as connection:
        assert facts(connection) == before
        assert check(connection) == []


@pytest.mark.parametrize(
    ("table", "row", "counted"),
    [
        (TABLES.outbox, MESSAGE, "1 unpublished messages"),
        (TABLES.dead_letter, DEAD, "1 dead letters"),
        (TABLES.saga, SAGA, "1 unfinished sagas"),
    ],
    ids=["outbox", "dead_letter", "saga"],
)
def test_it_is_refused_while_something_would_be_lost_unless_forced(
    upgraded: sa.Engine, table: sa.Table, row: dict[str, object], counted: str
) -> None:
    with upgraded.begin() as connection:
        connection.execute(table.insert(), row)

    with upgraded.begin() as connection:
        with pytest.raises(DowngradeRefused, match=f"{counted} would be lost"):
            downgrade(connection)
        assert check(connection) == []
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 1

    with upgraded.begin() as connection:
        downgrade(connection, force=True)
    with upgraded.begin() as connection:
        assert table_names(connection) == set()


def test_sagas_that_have_ended_do_not_hold_it_up(upgraded: sa.Engine) -> None:
    with upgraded.begin() as connection:
        connection.execute(TABLES.saga.insert(), {**SAGA, "state": "completed", "ended_at": NOW})

    with upgraded.begin() as connection:
        downgrade(connection)

    with upgraded.begin() as connection:
        assert current(connection) is None


@pytest.mark.databases("postgres18", "postgres15")
def test_a_message_that_is_just_being_written_is_waited_for_not_lost(
    upgraded: sa.Engine,
) -> None:
    with upgraded.connect() as writer:
        writer.execute(TABLES.outbox.insert(), MESSAGE)
        with upgraded.begin() as connection:
            with pytest.raises(UpgradeBusy, match="try again"):
                downgrade(connection, lock_timeout=0.05)
            assert connection.scalar(sa.select(sa.literal(1))) == 1  # still usable
        writer.commit()

    with upgraded.begin() as connection, pytest.raises(DowngradeRefused):
        downgrade(connection)


def test_a_database_without_our_tables_is_left_as_it_is(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        downgrade(connection)
        assert table_names(connection) == set()


def test_forward_is_not_back(engine: sa.Engine, two_revisions: Callable[[], None]) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    two_revisions()

    with engine.begin() as connection, pytest.raises(UpgradeRefused, match="does not come after"):
        downgrade(connection, revision="9001")


def test_one_revision_back_keeps_what_the_earlier_one_made(
    engine: sa.Engine, two_revisions: Callable[[], None]
) -> None:
    two_revisions()
    with engine.begin() as connection:
        upgrade(connection)
        connection.execute(TABLES.outbox.insert(), MESSAGE)  # 9001 drops no table of messages

    with engine.begin() as connection:
        downgrade(connection, revision="0006")

    with engine.begin() as connection:
        assert current(connection) == "0006" != head()
        assert "outbox_saga_later" not in table_names(connection)
        assert connection.scalar(sa.select(sa.func.count()).select_from(TABLES.outbox)) == 1


def test_back_at_the_first_revision_every_table_is_as_it_was(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection, revision="0001")
        before = facts(connection)
        upgrade(connection)
        assert facts(connection) != before

    with engine.begin() as connection:
        downgrade(connection, revision="0001")

    with engine.begin() as connection:
        assert current(connection) == "0001"
        assert facts(connection) == before


@pytest.mark.parametrize("table", ["delayed", "inbox_waiting"])
def test_messages_that_have_not_arrived_yet_are_counted_before_their_table_goes(
    upgraded: sa.Engine, table: str
) -> None:
    row: dict[str, object] = {"topic": "t", "headers": "{}", "body": b""}
    if table == "delayed":
        row |= {"id": uuid4(), "due_at": NOW, "partition": 0, "created_at": NOW}
    else:
        row |= {"consumer": "c", "message_id": uuid4(), "arrived_at": NOW, "attempts": 1}
        row |= {"error_code": "e", "error": "e"}
    with upgraded.begin() as connection:
        connection.execute(getattr(TABLES, table).insert(), row)

    with upgraded.begin() as connection, pytest.raises(DowngradeRefused, match=r"^1 "):
        downgrade(connection, revision="0001")
