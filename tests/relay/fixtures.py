"""The fixture `house`: once for each database, with one set of tables a run, emptied each time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.databases import SERVERS
from tests.fixtures.databases import Database as EmptyDatabase
from tests.fixtures.services import Services
from tests.relay.house import House, names, prepare


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "house" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("databases")
        metafunc.parametrize("house", names(marker), indirect=True)


@pytest.fixture(scope="session")
def prepared_houses() -> dict[str, EmptyDatabase]:
    """The databases with tables in them: making MariaDB's takes a second, so tests share one."""
    return {}


@pytest.fixture
async def house(
    request: pytest.FixtureRequest,
    prepared_houses: dict[str, EmptyDatabase],
    services: Services,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[House]:
    """An empty house on one of the databases (see the marker `databases`)."""
    name = request.param
    if name not in prepared_houses:
        kind = SERVERS[name]
        url = (
            f"sqlite:///{tmp_path_factory.mktemp('house') / 'house.db'}"
            if kind is None
            else services.get(kind).create_database()
        )
        prepared_houses[name] = prepare(EmptyDatabase(name, url))
    house = House(prepared_houses[name])
    house.empty()
    yield house
    await house.close()
