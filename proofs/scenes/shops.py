"""The write path's own shop, on the database of a scenario."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from proofs.scenes.world import World
from tests.fixtures.databases import Database
from tests.write_path.shop import Base, Shop


@contextmanager
def shop_on(on: World) -> Iterator[Shop]:
    """With its tables; closed at the end."""
    shop = Shop(Database("postgres18", on.url))
    try:
        with shop.engine.begin() as connection:
            Base.metadata.create_all(connection)
        yield shop
    finally:
        shop.close()
