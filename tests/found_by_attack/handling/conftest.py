"""Shares the fixture `house`, and has processes of a service in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.inbox.processes import MakeProcess, processes
from tests.relay.fixtures import house, prepared_houses, pytest_generate_tests
from tests.relay.house import House

__all__ = ["house", "prepared_houses", "process", "pytest_generate_tests"]


@pytest.fixture
async def process(house: House) -> AsyncIterator[MakeProcess]:
    """`process(handler, **options of Service.on)`: another process of the service."""
    async with processes(house) as make:
        yield make
