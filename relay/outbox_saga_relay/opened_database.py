"""A command's database: there, with our tables in it, and closed when the command ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import sqlalchemy as sa

from outbox_saga.database import READ_ONLY, Database
from outbox_saga.errors import ConfigurationError
from outbox_saga.queries.schema import require_tables


def refuse_missing_file(database: str | None) -> None:
    """SQLite would make an empty file, and a question would have changed something."""
    memory = (":memory:", "file:")
    if database and not database.startswith(memory) and not Path(database).exists():
        raise ConfigurationError(f"there is no file {database}; check the path in the URL")


@contextmanager
def opened(database_url: str, schema: str | None) -> Iterator[Database]:
    """The service's database, with our tables in it; closed at the end of the block."""
    database = _there(database_url, schema)
    try:
        with looking(database) as connection:
            require_tables(connection, database.tables)
        yield database
    finally:
        database.dispose()


@asynccontextmanager
async def opened_async(database_url: str, schema: str | None) -> AsyncIterator[Database]:
    """As `opened`, for verbs of the async engine."""
    database = _there(database_url, schema)
    try:
        await database.look(require_tables, database.tables)
        yield database
    finally:
        await database.close()


@contextmanager
def looking(database: Database) -> Iterator[sa.Connection]:
    """A transaction that only reads: on SQLite it waits for no writer."""
    with database.engine.execution_options(**{READ_ONLY: True}).begin() as connection:
        yield connection


def _there(database_url: str, schema: str | None) -> Database:
    database = Database(database_url, schema=schema, pool_size=2)
    if database.url.get_backend_name() == "sqlite":
        refuse_missing_file(database.url.database)
    return database
