"""A server that crashes forgets what was not in its log yet: transactions, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import sessionmaker

from outbox_saga import commit_outcome
from outbox_saga.errors import CommitUnknown
from outbox_saga.testing.servers import Postgres15, Postgres18
from outbox_saga.unit_of_work import unit_of_work
from outbox_saga_migrations import upgrade
from tests.fixtures.services import PrivateServer
from tests.write_path.shop import INSERT, Base, Order, Said


@pytest.fixture(params=[Postgres18, Postgres15], ids=["postgres18", "postgres15"])
def engine(
    request: pytest.FixtureRequest, private_server: PrivateServer
) -> Iterator[tuple[sa.Engine, CommitUnknown]]:
    """A server that is back after a crash, and what was told of the commit that came next."""
    server = private_server(request.param)
    engine = sa.create_engine(server.create_database(), poolclass=sa.NullPool)
    with engine.begin() as connection:
        upgrade(connection)
    with engine.begin() as connection:
        Base.metadata.create_all(connection)

    @event.listens_for(engine, "commit")
    def crash(connection: sa.Connection) -> None:
        server.kill()

    work = unit_of_work(sessionmaker(engine))
    with pytest.raises(CommitUnknown) as told, work as uow:  # noqa: PT012
        uow.session.add(Order(note="paid"))
        uow.publish(Said(word="a"), key="k")
    event.remove(engine, "commit", crash)
    server.start()
    yield engine, told.value
    engine.dispose()


Crashed = tuple[sa.Engine, CommitUnknown]


def test_a_number_that_was_given_out_again_is_not_taken_for_the_lost_transaction(
    engine: Crashed,
) -> None:
    after, unknown = engine
    with after.begin() as connection:
        connection.execute(INSERT, {"note": "another"})
    with after.connect() as connection:
        notes = list(connection.scalars(sa.select(Order.note)))
    assert notes == ["another"]
    assert commit_outcome(after, unknown, patience=1.0) in (None, False)  # False: not given again


def test_what_the_server_has_forgotten_is_known_to_be_rolled_back(engine: Crashed) -> None:
    assert commit_outcome(*engine, patience=1.0) is False
