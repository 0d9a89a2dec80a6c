"""Databases with our tables in them: as they should be, to be spoiled, and with users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doctor.examined import Examined, GoodServers
from tests.doctor.logins import Logins
from tests.fixtures.databases import Database as EmptyDatabase
from tests.fixtures.services import Services
from tests.relay.house import names, prepare


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "examined" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("databases")
        chosen = [name for name in names(marker) if name != "sqlite"]
        metafunc.parametrize("examined", chosen, indirect=True)


@pytest.fixture
def prepared(database: EmptyDatabase) -> EmptyDatabase:
    """Our tables and the till are in it."""
    return prepare(database)


@pytest.fixture
def logins(prepared: EmptyDatabase) -> Iterator[Logins]:
    """Users with roles, on `prepared`."""
    made = Logins(prepared)
    yield made
    made.close()


@pytest.fixture(scope="session")
def good_servers(services: Services) -> Iterator[GoodServers]:
    """Servers as they should be, for the tests of this folder."""
    running = GoodServers(services)
    yield running
    running.close()


@pytest.fixture
def examined(request: pytest.FixtureRequest, good_servers: GoodServers) -> Iterator[Examined]:
    """A database that nothing is wrong with (see the marker `databases`; SQLite has its own)."""
    made = Examined(request.param, good_servers.get(request.param))
    yield made
    made.close()
