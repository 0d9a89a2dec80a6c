"""Errors that user code catches although the server has given the transaction up."""

from __future__ import annotations

from contextlib import suppress

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox_saga.errors import CommitRefused
from tests.write_path.shop import INSERT, Shop, say

# what the server would answer to the loser
SIGNAL = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = {}, MESSAGE_TEXT = 'no'"


def swallow(session: Session, statement: str) -> None:
    with suppress(DBAPIError):
        session.execute(sa.text(statement))


@pytest.mark.databases("postgres18", "postgres15")
def test_after_a_failed_statement_the_commit_with_messages_fails(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.execute(INSERT, {"note": "row"})
        say(session, "said")
        swallow(session, "select 1 / 0")
        with pytest.raises(CommitRefused, match="begin_nested"):
            session.commit()
    assert (shop.notes(), shop.words()) == ([], [])


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("code", [1213, 1205])
def test_after_a_deadlock_or_a_lock_wait_the_commit_with_messages_is_refused(
    shop: Shop, code: int
) -> None:
    with Session(shop.engine) as session:
        session.execute(INSERT, {"note": "row"})
        say(session, "said")
        swallow(session, SIGNAL.format(code))
        session.execute(INSERT, {"note": "again"})
        with pytest.raises(CommitRefused, match="whole unit"):
            session.commit()
    assert (shop.notes(), shop.words()) == ([], [])


@pytest.mark.databases("mariadb")
def test_the_next_transaction_of_the_session_is_whole_again(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.execute(INSERT, {"note": "never"})
        say(session, "never")
        swallow(session, SIGNAL.format(1213))
        session.rollback()
        session.execute(INSERT, {"note": "row"})
        say(session, "said")
        session.commit()
    assert (shop.notes(), shop.words()) == (["row"], ["said"])


@pytest.mark.databases("mariadb")
def test_a_lock_wait_inside_a_savepoint_undoes_the_savepoint_only(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.execute(INSERT, {"note": "row"})
        say(session, "said")
        with suppress(DBAPIError), session.begin_nested():
            say(session, "never")
            session.execute(sa.text(SIGNAL.format(1205)))
        session.commit()
    assert (shop.notes(), shop.words()) == (["row"], ["said"])
