"""CommitUnknown where no COMMIT was sent."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker

from outbox_saga.queries.outbox import lock_numbers, take_key_locks
from outbox_saga.unit_of_work import unit_of_work
from tests.write_path.shop import Said, Shop

pytestmark = pytest.mark.databases("postgres18", "mariadb")


async def test_a_deadline_before_the_commit_is_no_unknown_commit_because_of_a_delayed_message(
    shop: Shop,
) -> None:
    """The delayed message is written, the other one waits for another writer of its key."""
    engine = shop.make_plain_async_engine()
    with shop.engine.begin() as holder:
        take_key_locks(holder, shop.tables, lock_numbers(["k"]))
        with pytest.raises(TimeoutError, match="nothing was committed"):
            async with unit_of_work(async_sessionmaker(engine), commit_timeout=0.3) as uow:
                uow.publish(Said(word="later"), key="k", delay=60)
                uow.publish(Said(word="now"), key="k")
    await engine.dispose()
    assert shop.words() == []
