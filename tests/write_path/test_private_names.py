"""What SQLAlchemy has no public name for: here it shows if some version renames it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import in_greenlet


def test_savepoints_have_a_name_and_know_the_one_around_them() -> None:
    with sa.create_engine("sqlite://").connect() as connection:
        connection.begin()
        outer = connection.begin_nested()
        inner = connection.begin_nested()
        assert inner._previous_nested is outer
        assert outer._previous_nested is None
        assert outer._savepoint != inner._savepoint
        inner.rollback()
        again = connection.begin_nested()
        assert again._savepoint not in (outer._savepoint, inner._savepoint)


def test_a_sessions_transaction_knows_its_connections() -> None:
    engine = sa.create_engine("sqlite://")
    with Session(engine) as session:
        root = session.begin()
        assert root._connections == {}
        connection = session.connection()
        taken, transaction, should_commit, _ = root._connections[engine]
        assert (taken, transaction, should_commit) == (
            connection,
            connection.get_transaction(),
            True,
        )


def test_outside_sqlalchemys_greenlet_we_know_that_we_are() -> None:
    assert in_greenlet() is False
