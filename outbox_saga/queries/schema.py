"""Whether our tables are there: asked once by each program, so that it can say what to do."""

from __future__ import annotations

import sqlalchemy as sa

from outbox_saga.errors import SchemaMissing
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
