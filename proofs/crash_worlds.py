"""Prepared worlds for the crash explorer's proofs, on private servers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from outbox_saga.testing.servers import MariaDB, Postgres18, choose
from outbox_saga.testing.servers.memory import folder_in_memory
from tests.crash.world import World

DATABASES = {"sqlite": None, "postgres18": Postgres18, "mariadb": MariaDB}


@contextmanager
def world_on(name: str) -> Iterator[World]:
    """A prepared world, and beside it a database without our tables."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder_in_memory())))
        kind = DATABASES[name]
        if kind is None:
            url, bare = f"sqlite:///{folder / 'crash.db'}", f"sqlite:///{folder / 'bare.db'}"
        else:
            server = stack.enter_context(choose(kind))
            url, bare = server.create_database(), server.create_database()
        world = World(name, url, folder, bare)
        world.prepare()
        stack.callback(world.close)
        yield world
