"""What will matter with the second revision, tried with one that exists only here."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from outbox_saga_migrations import check, current, sql, upgrade
from tests.migrations.catalog import table_names


def test_a_database_at_the_first_revision_gets_only_the_second(
    engine: sa.Engine, two_revisions: Callable[[], None]
) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    two_revisions()
    with engine.begin() as connection:
        assert [str(d) for d in check(connection)] == [
            "outbox_saga_version: the revision is 0006, and this version of outbox-saga needs 9001"
        ]

    with engine.begin() as connection:
        upgrade(connection)

    with engine.begin() as connection:
        assert current(connection) == "9001"
        assert "outbox_saga_later" in table_names(connection)


def test_an_upgrade_may_stop_at_an_earlier_revision(
    engine: sa.Engine, two_revisions: Callable[[], None]
) -> None:
    two_revisions()
    with engine.begin() as connection:
        upgrade(connection, revision="0006")

    with engine.begin() as connection:
        assert current(connection) == "0006"
        assert "outbox_saga_later" not in table_names(connection)


def test_a_revision_that_was_passed_already_changes_nothing(
    engine: sa.Engine, two_revisions: Callable[[], None]
) -> None:
    two_revisions()
    with engine.begin() as connection:
        upgrade(connection)

    with engine.begin() as connection:
        upgrade(connection, revision="0006")

    with engine.begin() as connection:
        assert current(connection) == "9001"


def test_offline_sql_starts_where_the_database_is(two_revisions: Callable[[], None]) -> None:
    two_revisions()

    written = sql("postgresql", start="0006")

    assert "outbox_saga_later" in written
    assert "outbox_saga_outbox" not in written
    assert "UPDATE outbox_saga_version SET version_num='9001'" in written
