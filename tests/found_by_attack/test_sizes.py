"""Many messages of one transaction on a server with its default packet of 16 MiB."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said, Shop

pytestmark = pytest.mark.databases("mariadb")


@pytest.mark.parametrize("delay", [None, 60.0])
@pytest.mark.parametrize("header", ["x" * 16_000, '"' * 8_000])
def test_a_thousand_messages_with_headers_as_long_as_they_may_be(
    shop: Shop, header: str, delay: float | None
) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session, headers={"h": header})
        for number in range(1000):
            uow.publish(Said(word=str(number)), delay=delay)
    table = shop.tables.outbox if delay is None else shop.tables.delayed
    with shop.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 1000


def test_sixteen_bodies_of_bytes_that_are_escaped(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for _ in range(17):
            uow.publish_body(
                b"\x00" * (256 * 1024),
                topic="t",
                type="T",
                content_type="application/octet-stream",
            )
    assert len(shop.rows()) == 17
