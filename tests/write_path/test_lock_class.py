"""One outbox has one order of each key, by whatever name it is reached."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said, Shop

pytestmark = pytest.mark.databases("postgres18", "postgres15")


def locks_at_commit(shop: Shop, schema: str | None) -> list[tuple[int, int]]:
    """The key locks of a transaction that is about to commit."""
    found: list[tuple[int, int]] = []

    def look(connection: sa.Connection) -> None:
        found.extend(
            (row.classid, row.objid)
            for row in connection.exec_driver_sql(
                "select classid, objid from pg_locks "
                "where locktype = 'advisory' and pid = pg_backend_pid()"
            )
        )

    connection: Any
    with shop.engine.connect() as connection:
        connection.begin()
        UnitOfWork(connection, schema=schema).publish(Said(word="said"), key="k")
        event.listen(shop.engine, "commit", look)  # after ours
        connection.commit()
        event.remove(shop.engine, "commit", look)
    return found


def test_with_and_without_its_schema_an_outbox_takes_the_same_locks(shop: Shop) -> None:
    (unnamed,) = locks_at_commit(shop, None)
    (named,) = locks_at_commit(shop, "public")
    assert unnamed == named
