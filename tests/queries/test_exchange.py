"""DELETE, COMMIT and the next SELECT in one round trip: as the three one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.messages import Event
from outbox_saga.queries import exchange, relay
from outbox_saga.queries.dialects import is_transient
from outbox_saga.queries.failures import store_failures
from outbox_saga.queries.relay import Failed, OutboxRow, Wanted
from outbox_saga.tables import PARTITIONS
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database as Given

EVERY = tuple(range(PARTITIONS))
pytestmark = pytest.mark.databases("postgres18", "postgres15")


class Said(Event, topic="talk"):
    word: str


@pytest.fixture
def ours(database: Given) -> Iterator[Database]:
    ours = Database(database.url)
    with ours.begin() as connection:
        upgrade(connection)
        for number, key in enumerate(("a", "b", None, "ä", "a")):
            UnitOfWork(connection).publish(Said(word=f"ö{number}"), key=key)
    yield ours
    ours.engine.dispose()


@pytest.fixture
def kept(ours: Database) -> Iterator[sa.Connection]:
    connection = exchange.connect(ours.engine)
    yield connection
    connection.close()


def page(
    ours: Database,
    kept: sa.Connection,
    published: list[OutboxRow],
    *,
    partitions: tuple[int, ...] = EVERY,
    limit: int = 100,
    look_for_blocked: bool = False,
) -> list[OutboxRow]:
    wanted = Wanted(partitions, limit, look_for_blocked=look_for_blocked)
    return exchange.exchange(kept, ours.tables, ours.clock, published, wanted).rows


def rows(ours: Database, **how: Any) -> list[OutboxRow]:
    wanted = Wanted(EVERY, 100, **{"look_for_blocked": False, **how})
    with ours.begin() as connection:
        return relay.read_page(connection, ours.tables, ours.clock, wanted)


def test_it_reads_what_read_page_reads(ours: Database, kept: sa.Connection) -> None:
    everything = rows(ours)
    assert len(everything) == 5
    assert page(ours, kept, []) == everything
    assert page(ours, kept, [], limit=2) == everything[:2]
    some = (everything[0].partition, everything[2].partition)
    assert page(ours, kept, [], partitions=some) == [r for r in everything if r.partition in some]
    assert everything[3].envelope().key == "ä"


def test_keys_that_are_blocked_are_left_out(ours: Database, kept: sa.Connection) -> None:
    first = rows(ours)[0]
    with ours.begin() as connection:
        failed = Failed(first, 60.0, "busy", "not now")
        store_failures(connection, ours.tables, ours.clock, [(failed, 1)])
    found = page(ours, kept, [], look_for_blocked=True)
    assert [row.key for row in found] == ["b", None, "ä"]
    assert found == rows(ours, look_for_blocked=True)


def test_only_rows_of_this_position_and_id_go(ours: Database, kept: sa.Connection) -> None:
    first, second, *others = rows(ours)
    somebody_elses = second._replace(id=new_id())
    assert page(ours, kept, [first, somebody_elses]) == [second, *others]
    assert rows(ours) == [second, *others]


def test_it_is_committed_and_no_transaction_is_left(ours: Database, kept: sa.Connection) -> None:
    page(ours, kept, rows(ours))
    assert rows(ours) == []
    raw: Any = kept.connection.driver_connection
    assert raw.info.transaction_status.name == "IDLE"


def test_whoever_wraps_do_execute_sees_every_statement(
    ours: Database, kept: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = rows(ours)[:1]
    seen: list[str] = []
    original = kept.dialect.do_execute

    def do_execute(cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement.split(maxsplit=1)[0])
        original(cursor, statement, *rest)

    monkeypatch.setattr(kept.dialect, "do_execute", do_execute)
    page(ours, kept, published)
    assert seen == ["BEGIN", "WITH", "COMMIT", "SELECT", "SELECT"]


@pytest.mark.needs_a_session("ends its session by its number")
def test_a_lost_connection_is_a_transient_error(ours: Database, kept: sa.Connection) -> None:
    published = rows(ours)
    raw: Any = kept.connection.driver_connection
    with ours.begin() as connection:
        connection.execute(
            sa.text("select pg_terminate_backend(:pid)"), {"pid": raw.info.backend_pid}
        )
    with pytest.raises(DBAPIError) as lost:
        page(ours, kept, published)
    assert is_transient(lost.value)
    kept.invalidate()
    assert rows(ours) == published


def test_an_error_in_the_delete_reads_no_page(ours: Database, kept: sa.Connection) -> None:
    published = rows(ours)
    with ours.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {ours.tables.outbox.name} RENAME TO gone")
    with pytest.raises(DBAPIError) as missing:
        page(ours, kept, published)
    assert not is_transient(missing.value)
    kept.invalidate()


@pytest.mark.parametrize("how", [{"above": 2}, {"known": [1, 3]}, {"held": ["a", "ä"]}, {}])
def test_every_way_to_restrict_a_page_means_the_same_in_both_ways_to_read_it(
    ours: Database, kept: sa.Connection, how: dict[str, Any]
) -> None:
    wanted = Wanted(EVERY, 100, **how)
    with ours.begin() as connection:
        plain = relay.read_page(connection, ours.tables, ours.clock, wanted)

    assert exchange.exchange(kept, ours.tables, ours.clock, [], wanted).rows == plain
    assert len(plain) == {"above": 3, "known": 3, "held": 2}.get(next(iter(how), ""), 5)


def test_it_tells_its_own_transaction_and_the_oldest_that_is_open(
    ours: Database, kept: sa.Connection
) -> None:
    with ours.engine.connect() as other:
        open_one = other.exec_driver_sql("select pg_current_xact_id()::text::bigint").scalar_one()
        found = exchange.exchange(
            kept, ours.tables, ours.clock, rows(ours)[:2], Wanted(EVERY, 100)
        )
        assert found.oldest == open_one
        assert open_one in found.in_progress
        assert found.transaction is not None
        assert found.transaction > open_one
        assert found.removed == 2
    after = exchange.exchange(kept, ours.tables, ours.clock, [], Wanted(EVERY, 100))
    assert after.transaction is None
    assert after.oldest is not None
    assert after.oldest > found.transaction


def test_without_a_page_nothing_is_read(ours: Database, kept: sa.Connection) -> None:
    found = exchange.exchange(kept, ours.tables, ours.clock, rows(ours)[:2], Wanted(EVERY, 0))
    assert (found.rows, found.removed, found.oldest) == ([], 2, None)
