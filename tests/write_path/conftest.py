"""The fixture `shop`: on each database, one set of tables per run, emptied before each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox_saga_migrations import upgrade
from tests.fixtures.databases import SERVERS, Database
from tests.fixtures.services import Services
from tests.write_path.shop import Base, Shop


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shop" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("databases")
        metafunc.parametrize("shop", marker.args if marker else tuple(SERVERS), indirect=True)


@pytest.fixture(scope="session")
def prepared(services: Services, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Database]:
    """The databases with tables in them: making MariaDB's takes a second, so tests share one."""
    return {}


@pytest.fixture
def shop(
    request: pytest.FixtureRequest,
    prepared: dict[str, Database],
    services: Services,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """An empty shop on one of the databases (see the marker `databases`)."""
    name = request.param
    if name not in prepared:
        kind = SERVERS[name]
        if kind is None:
            url = f"sqlite:///{tmp_path_factory.mktemp('shop') / 'shop.db'}"
        else:
            url = services.get(kind).create_database()
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            upgrade(connection)
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
        prepared[name] = Database(name, url)
    shop = Shop(prepared[name])
    shop.empty()
    yield shop
    shop.close()


@pytest.fixture
async def async_engine(shop: Shop) -> AsyncIterator[AsyncEngine]:
    """An async engine on the shop's database."""
    engine = shop.make_async_engine()
    yield engine
    await engine.dispose()
