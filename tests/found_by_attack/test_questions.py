"""What is asked of a database in the isolation its owner has chosen."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox_saga import commit_outcome
from outbox_saga.envelopes import seal
from outbox_saga.errors import CommitUnknown
from outbox_saga.queries.outbox import write_messages
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said, Shop


@pytest.mark.databases("mariadb")
def test_what_is_not_committed_yet_is_not_taken_for_committed(shop: Shop) -> None:
    """The server has not noticed yet that the client is gone: its transaction is still open, and
    will be rolled back.
    """
    engine = shop.make_plain_engine(isolation_level="READ UNCOMMITTED")
    message = seal(
        Said(word="a"),
        key=None,
        source="s",
        headers=None,
        topic=None,
        correlation_id=None,
        causation_id=None,
    )
    with shop.engine.connect() as other:
        write_messages(other, shop.tables, [message])
        said = commit_outcome(engine, CommitUnknown((message.id,)), patience=0.2)
        other.rollback()
    assert said is not True


@pytest.mark.databases("sqlite", "mariadb", "postgres18")
@pytest.mark.parametrize("delay", [1e-9, 1e-6, 1.5e-5, 0.1234567, 10 * 366 * 86_400.0])
def test_every_delay_that_is_taken_can_be_written(shop: Shop, delay: float) -> None:
    with Session(shop.engine) as session, session.begin():
        UnitOfWork(session).publish(Said(word="b"), delay=delay)
    with shop.engine.connect() as connection:
        (row,) = connection.execute(sa.select(shop.tables.delayed)).all()
    assert abs((row.due_at - row.created_at).total_seconds() - delay) < 0.05
