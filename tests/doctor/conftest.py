"""A database with our tables in it, and users with our roles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doctor.logins import Logins
from tests.fixtures.databases import Database as EmptyDatabase
from tests.relay.house import prepare


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
