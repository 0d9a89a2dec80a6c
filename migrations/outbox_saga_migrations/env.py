"""Alembic's own way in: `alembic upgrade head` with this folder as its script location.

In this checkout `alembic revision --autogenerate -x url=…` drafts the next revision. Everybody
else calls `outbox_saga_migrations.upgrade`, which needs no configuration and does not come here.
A connection may be passed as `config.attributes["connection"]`, a schema as `-x schema=…`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context
from sqlalchemy import Connection

from outbox_saga.database_urls import connect_args, sync_url
from outbox_saga.errors import ConfigurationError
from outbox_saga.tables import tables_in
from outbox_saga_migrations.scripts import options

arguments = context.get_x_argument(as_dictionary=True)
schema: str | None = arguments.get("schema")


def url() -> str:
    """Where to: `-x url=…`, or `sqlalchemy.url` of the configuration."""
    found = arguments.get("url") or context.config.get_main_option("sqlalchemy.url")
    if not found:
        raise ConfigurationError("no database: pass -x url=… or set sqlalchemy.url")
    return found


def run(connection: Connection) -> None:
    """Run what the command asked for."""
    context.configure(
        connection=connection,
        target_metadata=tables_in(schema).metadata,
        include_schemas=schema is not None,
        # Here our tables are the ones to be compared.
        autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.outbox_saga"],
        **options(schema),
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(url=sync_url(url()), literal_binds=True, **options(schema))
    with context.begin_transaction():
        context.run_migrations()
elif isinstance(given := context.config.attributes.get("connection"), Connection):
    run(given)
else:
    engine = sa.create_engine(
        sync_url(url()), poolclass=sa.NullPool, connect_args=connect_args(url())
    )
    with engine.begin() as connection:
        run(connection)
