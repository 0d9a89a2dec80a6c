"""A saga's compare-and-set and its history: both or neither, and the same on every database."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.instances import Entry, Instance, SagaState, StepState
from outbox_saga.queries import sagas, transition
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database as Given

RUNNING = SagaState("running", {"account": "ä\"'%()"}, {"charge": StepState()})
A_MOMENT = dt.datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)


@pytest.fixture
def ours(database: Given) -> Iterator[Database]:
    ours = Database(database.url)
    with ours.begin() as connection:
        upgrade(connection)
    yield ours
    ours.engine.dispose()


def started(ours: Database) -> Instance:
    """An instance at revision 0 that somebody has leased."""
    id_ = new_id()
    instance = Instance(id_, "s", 1, "shape", "shop", None, str(id_), 0, 0, RUNNING)
    with ours.begin() as connection:
        sagas.insert(connection, ours.tables, ours.clock, instance, b"x" * 32)
        saga = ours.tables.saga
        connection.execute(sa.update(saga).values(owner=new_id(), lease_until=ours.clock.now(60)))
    return instance


def move(ours: Database, seen: Instance, state: SagaState, *entries: Entry, **how: Any) -> bool:
    due = how.pop("due", None)
    with ours.begin() as connection:
        return transition.record(
            connection,
            ours.tables,
            ours.clock,
            seen,
            state,
            due,
            entries,
            keep_lease=how.pop("keep_lease", True),
            keep_deaths=how.pop("keep_deaths", False),
        )


def rows(ours: Database, table: sa.Table) -> list[Any]:
    with ours.engine.connect() as connection:
        return list(connection.execute(sa.select(table)))


def test_the_row_moves_one_revision_and_its_history_says_how(ours: Database) -> None:
    seen = started(ours)
    state = replace(RUNNING, data={"account": "ü"}, reason="it's 100 % :said").with_step(
        "charge", phase="done", attempts=2
    )
    entries = (
        Entry("STEP_FAILED", "charge", 1, "no %s :x", A_MOMENT),
        Entry("STEP_COMPLETED", "charge", 2),
    )
    assert move(ours, seen, state, *entries, due=A_MOMENT)
    (row,) = rows(ours, ours.tables.saga)
    with ours.engine.connect() as connection:
        read = sagas.read(connection, ours.tables, seen.id)
    assert read == replace(seen, revision=1, state=state, started_at=row.started_at)
    assert row.due_at == A_MOMENT
    assert row.owner is not None
    assert row.ended_at is None
    assert row.updated_at >= row.started_at
    assert [(*tuple(r)[:7], r.detail) for r in rows(ours, ours.tables.saga_history)] == [
        (seen.id, 1000, 1, "STEP_FAILED", "charge", 1, A_MOMENT, "no %s :x"),
        (seen.id, 1001, 1, "STEP_COMPLETED", "charge", 2, None, None),
    ]


@pytest.mark.parametrize("stale", [{"revision": 7}, {"epoch": 7}, {"id": new_id()}])
def test_one_that_is_not_as_seen_leaves_nothing_behind(
    ours: Database, stale: dict[str, Any]
) -> None:
    seen = started(ours)
    before = rows(ours, ours.tables.saga)
    assert not move(ours, replace(seen, **stale), RUNNING, Entry("STEP_COMPLETED", "charge", 1))
    assert rows(ours, ours.tables.saga) == before
    assert rows(ours, ours.tables.saga_history) == []


def test_without_history_only_the_row_moves(ours: Database) -> None:
    seen = started(ours)
    assert move(ours, seen, RUNNING)
    assert not move(ours, seen, RUNNING)
    assert [row.revision for row in rows(ours, ours.tables.saga)] == [1]
    assert rows(ours, ours.tables.saga_history) == []


def test_the_lease_goes_and_the_end_is_noted_and_taken_back(ours: Database) -> None:
    seen = started(ours)
    stuck = replace(RUNNING, status="stuck")
    assert move(ours, seen, stuck, Entry("STUCK"), keep_lease=False)
    (row,) = rows(ours, ours.tables.saga)
    assert (row.owner, row.lease_until) == (None, None)
    assert row.ended_at is not None
    assert move(ours, replace(seen, revision=1, state=stuck), RUNNING, Entry("RESUMED"))
    (row,) = rows(ours, ours.tables.saga)
    assert row.ended_at is None


def test_a_report_forgives_all_deaths_and_taking_up_none(ours: Database) -> None:
    seen = started(ours)
    saga = ours.tables.saga
    with ours.begin() as connection:
        connection.execute(sa.update(saga).values(deaths=3))
    intent = Entry("RUNNING", "charge", 1)
    assert move(ours, seen, RUNNING, intent, keep_deaths=True)
    assert [row.deaths for row in rows(ours, saga)] == [3]
    with ours.engine.connect() as connection:
        read = sagas.read(connection, ours.tables, seen.id)
    assert read is not None
    assert read.deaths == 3
    assert move(ours, replace(seen, revision=1), RUNNING, Entry("STEP_COMPLETED", "charge", 1))
    assert [row.deaths for row in rows(ours, saga)] == [0]


@pytest.mark.databases("postgres18")
@pytest.mark.needs_a_session("has psycopg prepare statements, which are one session's")
def test_so_it_is_once_psycopg_has_prepared_the_statement(database: Given) -> None:
    ours = Database(database.url, pool_size=1)
    with ours.begin() as connection:
        upgrade(connection)
    seen = started(ours)
    entry = Entry("STEP_FAILED", "charge", 1, "ä\"'%s:x\\", A_MOMENT)
    for revision in range(10):
        now = replace(seen, revision=revision)
        assert move(ours, now, replace(RUNNING, reason=f"{revision} %"), entry, due=A_MOMENT)
        assert not move(ours, now, RUNNING, entry)
    (row,) = rows(ours, ours.tables.saga)
    assert (row.revision, row.reason, row.due_at) == (10, "9 %", A_MOMENT)
    history = rows(ours, ours.tables.saga_history)
    assert [each.revision for each in history] == list(range(1, 11))
    assert {(each.detail, each.started_at) for each in history} == {(entry.detail, A_MOMENT)}
    ours.engine.dispose()
