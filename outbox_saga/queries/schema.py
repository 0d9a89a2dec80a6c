"""Whether our tables are there, and which ones are meant; where not, what to do is said."""

from __future__ import annotations

import sqlalchemy as sa

from outbox_saga.errors import ConfigurationError, SchemaMissing
from outbox_saga.tables import Tables


def require_tables(connection: sa.Connection, tables: Tables) -> None:
    """Every table of ours is there; otherwise SchemaMissing says which is not, and what to run."""
    there = set(sa.inspect(connection).get_table_names(schema=tables.schema))
    missing = [t.name for t in tables.metadata.sorted_tables if t.name not in there]
    if missing:
        schema = f" --schema {tables.schema}" if tables.schema is not None else ""
        raise SchemaMissing(
            f"{len(missing)} of our tables are not in this database ({missing[0]}, for one); run "
            f"`outbox-saga db upgrade --database-url …{schema}`"
        )


def refuse_translated(connection: sa.Connection, tables: Tables) -> None:
    """Raises ConfigurationError if this connection's `schema_translate_map` moves our tables.

    What we send as SQL text does not follow it, and what we send by SQLAlchemy does: one
    transaction would write into two schemas.
    """
    translated = connection.get_execution_options().get("schema_translate_map")
    if translated and (meant := translated.get(tables.schema, tables.schema)) != tables.schema:
        raise ConfigurationError(
            f"the connection's schema_translate_map moves tables of schema {tables.schema!r} to "
            f"{meant!r}, and the outbox could be meant in either: say which by `schema=` of "
            f"UnitOfWork or unit_of_work ({meant!r}, or the name of the default schema)"
        )
