"""The fixture `world`: one database of each kind for all tests here, emptied before each run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.world import World
from tests.fixtures.databases import SERVERS
from tests.fixtures.services import Services


@pytest.fixture(scope="session")
def crash_worlds() -> Iterator[dict[str, World]]:
    """The worlds made so far."""
    worlds: dict[str, World] = {}
    yield worlds
    for world in worlds.values():
        world.close()


@pytest.fixture
def world(
    request: pytest.FixtureRequest,
    crash_worlds: dict[str, World],
    services: Services,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    """The world on the database that the test names by indirect parametrisation."""
    name = request.param
    if name not in crash_worlds:
        folder = tmp_path_factory.mktemp(f"crash-{name}")
        kind = SERVERS[name]
        names = ("crash.db", "bare.db")
        url, bare = (
            f"sqlite:///{folder / file}" if kind is None else services.get(kind).create_database()
            for file in names
        )
        made = World(name, url, folder, bare)
        made.prepare()
        crash_worlds[name] = made
    return crash_worlds[name]
