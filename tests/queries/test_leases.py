"""Who has an instance, and how many have died with it; the same on every database."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.instances import Instance, SagaState, StepState
from outbox_saga.queries import leases, sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.leases import Known
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database as Given

LEASE = 30.0
RUNNING = SagaState("running", {}, {"charge": StepState()})
ME, OTHER = new_id(), new_id()
KNOWN = Known(["s"])


@pytest.fixture
def ours(database: Given) -> Iterator[Database]:
    ours = Database(database.url)
    with ours.begin() as connection:
        upgrade(connection)
    yield ours
    ours.engine.dispose()


def start(ours: Database, deaths: int = 0, *, ago: float = 0.0) -> UUID:
    """An instance that is due since so many seconds, and has had so many owners die with it."""
    id_ = new_id()
    instance = Instance(id_, "s", 1, "shape", "shop", None, str(id_), 0, 0, RUNNING)
    saga = ours.tables.saga
    with ours.begin() as connection:
        sagas.insert(connection, ours.tables, ours.clock, instance, b"x" * 32)
        connection.execute(
            sa.update(saga)
            .where(saga.c.id == id_)
            .values(deaths=deaths, due_at=ours.clock.now(-ago))
        )
    return id_


def claim(
    ours: Database, owner: UUID, *, at: float = 0.0, limit: int = 10, suspects: bool = True
) -> list[Instance]:
    with ours.begin() as connection:
        _, claimed = leases.claim(
            connection,
            ours.tables,
            Clock(at),
            owner,
            LEASE,
            KNOWN,
            limit,
            suspects=suspects,
        )
    return claimed


def any_due(ours: Database, owner: UUID, *, at: float = 0.0, suspects: bool = True) -> bool:
    with ours.engine.connect() as connection:
        return leases.any_due(connection, ours.tables, Clock(at), owner, KNOWN, suspects=suspects)


def deaths(ours: Database) -> list[int]:
    with ours.engine.connect() as connection:
        return list(connection.execute(sa.select(ours.tables.saga.c.deaths)).scalars())


def test_a_lease_that_ran_out_is_a_death_of_its_owner(ours: Database) -> None:
    start(ours)

    (first,) = claim(ours, OTHER)
    assert (first.deaths, first.orphaned, first.epoch) == (0, False, 1)
    assert claim(ours, ME, at=LEASE - 1) == []
    (second,) = claim(ours, ME, at=LEASE + 1)

    assert (second.deaths, second.orphaned, second.epoch) == (1, True, 2)
    assert deaths(ours) == [1]


def test_a_lease_that_was_given_back_is_no_death(ours: Database) -> None:
    start(ours)
    (first,) = claim(ours, OTHER)
    with ours.begin() as connection:
        leases.release(connection, ours.tables, ours.clock, first, OTHER)

    (second,) = claim(ours, ME, at=LEASE + 1)

    assert (second.deaths, second.orphaned) == (0, False)
    assert deaths(ours) == [0]


def test_deaths_are_remembered_while_nobody_has_the_instance(ours: Database) -> None:
    start(ours)
    claim(ours, OTHER)
    (first,) = claim(ours, ME, at=LEASE + 1)
    with ours.begin() as connection:
        leases.release(connection, ours.tables, ours.clock, first, ME)

    (second,) = claim(ours, OTHER, at=LEASE + 1)

    assert (second.deaths, second.orphaned) == (1, False)


def test_a_process_that_finds_its_own_lease_run_out_has_not_died(ours: Database) -> None:
    start(ours)
    claim(ours, ME)

    (again,) = claim(ours, ME, at=LEASE + 1)

    assert (again.deaths, again.orphaned) == (0, False)
    assert deaths(ours) == [0]


def test_of_those_that_may_kill_one_is_claimed_and_all_that_may_not(ours: Database) -> None:
    killer = start(ours, 5, ago=9)
    bystanders = [start(ours, 2, ago=8), start(ours, 2, ago=7)]
    innocent = [start(ours, 1, ago=6), start(ours, ago=5), start(ours, ago=4)]

    claimed = claim(ours, ME)

    assert {instance.id for instance in claimed} == {bystanders[0], *innocent}
    assert claim(ours, OTHER, suspects=False) == []
    assert [instance.id for instance in claim(ours, OTHER)] == [bystanders[1]]
    assert [instance.id for instance in claim(ours, OTHER)] == [killer]


def test_the_lease_that_has_just_run_out_counts_for_who_is_claimed_alone(ours: Database) -> None:
    first, second = start(ours, 1, ago=9), start(ours, 1, ago=8)
    assert {instance.id for instance in claim(ours, OTHER)} == {first, second}

    claimed = claim(ours, ME, at=LEASE + 1)

    assert [(instance.id, instance.deaths) for instance in claimed] == [(first, 2)]
    assert not any_due(ours, ME, at=LEASE + 1, suspects=False)
    assert any_due(ours, ME, at=LEASE + 1)


def test_many_that_may_kill_at_the_head_do_not_keep_the_others_waiting(ours: Database) -> None:
    for _ in range(8):
        start(ours, 3, ago=9)
    innocent = [start(ours) for _ in range(3)]

    claimed = claim(ours, ME, limit=4)

    assert len(claimed) == 4
    assert {instance.id for instance in claimed} > set(innocent)


def test_with_room_for_one_only_the_one_with_the_fewest_deaths_is_claimed(ours: Database) -> None:
    start(ours, 7, ago=9)
    fewest = start(ours, 2, ago=1)

    assert [instance.id for instance in claim(ours, ME, limit=1)] == [fewest]


def test_while_one_that_may_kill_is_in_hand_the_others_go_on(ours: Database) -> None:
    start(ours, 3, ago=9)
    innocent = start(ours)

    assert any_due(ours, ME, suspects=False)
    assert [instance.id for instance in claim(ours, ME, suspects=False)] == [innocent]
    assert not any_due(ours, ME, suspects=False)
