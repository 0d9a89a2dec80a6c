"""Failures that wait, stored in one round trip: what the statements one by one leave behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.messages import Event
from outbox_saga.queries import exchange, partitions, relay
from outbox_saga.queries.dialects import is_transient
from outbox_saga.queries.failures import MAX_ERROR, store_failures
from outbox_saga.queries.failures_at_once import store_retries
from outbox_saga.queries.relay import Failed, OutboxRow, Wanted
from outbox_saga.tables import PARTITIONS
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database as Given

EVERY = tuple(range(PARTITIONS))
LEASE = 60.0  # seconds
OWNER = new_id()
pytestmark = pytest.mark.databases("postgres18", "postgres15")


class Said(Event, topic="talk"):
    word: str


@pytest.fixture
def ours(database: Given) -> Iterator[Database]:
    ours = Database(database.url)
    with ours.begin() as connection:
        upgrade(connection)
        for number, key in enumerate(("a", "b", None, "ä\"'{},", "\\a%s")):
            UnitOfWork(connection).publish(Said(word=f"ö{number}"), key=key)
    yield ours
    ours.engine.dispose()


@pytest.fixture
def kept(ours: Database) -> Iterator[sa.Connection]:
    connection = exchange.connect(ours.engine)
    yield connection
    connection.close()


@pytest.fixture
def epochs(ours: Database) -> dict[int, int]:
    with ours.begin() as connection:
        return partitions.take_lease(connection, ours.tables, ours.clock, OWNER, LEASE, len(EVERY))


def rows(ours: Database) -> list[OutboxRow]:
    wanted = Wanted(EVERY, 100, look_for_blocked=False)
    with ours.begin() as connection:
        return relay.read_page(connection, ours.tables, ours.clock, wanted)


def blocked(ours: Database) -> list[Any]:
    table = ours.tables.blocked_key
    with ours.begin() as connection:
        told = sa.select(
            *(c for c in table.c if c.name != "until"),
            sa.func.round(sa.extract("epoch", table.c.until - ours.clock.now())).label("wait"),
        )
        return list(connection.execute(told.order_by(table.c.position)))


def stored(
    ours: Database,
    kept: sa.Connection,
    failures: Sequence[tuple[Failed, int]],
    epochs: dict[int, int],
) -> list[Failed] | None:
    mine = {f.row.partition: epochs.get(f.row.partition, -1) for f, _ in failures}
    return store_retries(
        kept, ours.tables, ours.clock, failures, owner=OWNER, epochs=mine, lease=LEASE
    )


def failing(ours: Database) -> list[tuple[Failed, int]]:
    texts = ("busy", "nul \x00, \ud800 and \"quotes' \\", "x" * 2 * MAX_ERROR, "%s %(a)s", "")
    return [
        (Failed(row, 1000.0 * (number + 1), f"code{number}", texts[number]), number + 1)
        for number, row in enumerate(rows(ours))
    ]


def test_it_leaves_what_the_statements_one_by_one_leave(
    ours: Database, kept: sa.Connection, epochs: dict[int, int]
) -> None:
    failures = failing(ours)
    with ours.begin() as connection:
        assert store_failures(connection, ours.tables, ours.clock, failures) == [
            f for f, _ in failures
        ]
    expected = blocked(ours)
    with ours.begin() as connection:
        connection.execute(sa.delete(ours.tables.blocked_key))
    assert stored(ours, kept, failures, epochs) == [f for f, _ in failures]
    assert blocked(ours) == expected
    assert len(expected) == 5


def test_a_row_that_fails_again_waits_once_and_for_its_last_failure(
    ours: Database, kept: sa.Connection, epochs: dict[int, int]
) -> None:
    row = rows(ours)[0]
    stored(ours, kept, [(Failed(row, 10.0, "busy", "not now"), 1)], epochs)
    stored(ours, kept, [(Failed(row, 5000.0, "full", "still not"), 2)], epochs)
    (waits,) = blocked(ours)
    assert (waits.attempts, waits.error_code, waits.error) == (2, "full", "still not")
    assert waits.wait == 5000


def test_nothing_waits_for_a_row_that_is_gone_or_is_another_by_now(
    ours: Database, kept: sa.Connection, epochs: dict[int, int]
) -> None:
    first, second, third, *_ = rows(ours)
    with ours.begin() as connection:
        relay.delete_published(connection, ours.tables, [first])
    another = second._replace(id=new_id())
    failures = [(Failed(row, 9.0, "busy", "not now"), 1) for row in (first, another, third)]
    assert stored(ours, kept, failures, epochs) == [failures[2][0]]
    assert [waits.position for waits in blocked(ours)] == [third.position]


@pytest.mark.parametrize("lost", ["to another", "and had again", "by time", "in part"])
def test_whoever_does_not_hold_every_lease_stores_nothing(
    ours: Database, kept: sa.Connection, epochs: dict[int, int], lost: str
) -> None:
    failures = failing(ours)
    lease = ours.tables.partition_lease
    mine = {failed.row.partition for failed, _ in failures}
    assert len(mine) > 1
    taken: dict[str, Any] = {
        "to another": {"owner": new_id()},
        "and had again": {"epoch": lease.c.epoch + 1},
        "by time": {"until": ours.clock.now(-1.0)},
        "in part": {"owner": None},
    }
    which = {min(mine)} if lost == "in part" else mine
    with ours.begin() as connection:
        connection.execute(
            sa.update(lease).where(lease.c.partition.in_(which)).values(**taken[lost])
        )
    assert stored(ours, kept, failures, epochs) is None
    assert blocked(ours) == []


def test_it_is_committed_and_no_transaction_is_left(
    ours: Database, kept: sa.Connection, epochs: dict[int, int]
) -> None:
    stored(ours, kept, failing(ours), epochs)
    raw: Any = kept.connection.driver_connection
    assert raw.info.transaction_status.name == "IDLE"


def test_whoever_wraps_do_execute_sees_every_statement(
    ours: Database,
    kept: sa.Connection,
    epochs: dict[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = failing(ours)
    seen: list[str] = []
    original = kept.dialect.do_execute

    def do_execute(cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement.split(maxsplit=1)[0])
        original(cursor, statement, *rest)

    monkeypatch.setattr(kept.dialect, "do_execute", do_execute)
    stored(ours, kept, failures, epochs)
    assert seen == ["BEGIN", "WITH", "COMMIT"]


@pytest.mark.needs_a_session("ends its session by its number")
def test_a_lost_connection_is_a_transient_error(
    ours: Database, kept: sa.Connection, epochs: dict[int, int]
) -> None:
    failures = failing(ours)
    raw: Any = kept.connection.driver_connection
    with ours.begin() as connection:
        connection.execute(sa.select(sa.func.pg_terminate_backend(raw.info.backend_pid, 5000)))
    with pytest.raises(DBAPIError) as lost:
        stored(ours, kept, failures, epochs)
    assert is_transient(lost.value)
    assert blocked(ours) == []
    kept.invalidate()
