"""The shape of our tables, defined once for PostgreSQL, MariaDB/MySQL and SQLite.

The migrations build exactly this (a test compares them). Keys and ids compare as bytes on every
database: under MariaDB's default collation 'ABC' equals 'abc ', which would drop different
messages.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.column_types import Body, Bytewise, Digest, Id, LongText, Moment

PREFIX = "outbox_saga_"
PARTITIONS = 64
KEY_LOCKS = 1024


# SQLite gives AUTOINCREMENT only to INTEGER, and without it re-uses the positions of deleted rows
POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _stored(table: sa.Table, **parameters: str) -> sa.Table:
    """The table with these storage parameters on PostgreSQL.

    SQLAlchemy 2.0 has no option for it.
    """
    settings = ", ".join(f"{name} = {value}" for name, value in parameters.items())
    change = sa.DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy 2.0 has no annotation here
        f"ALTER TABLE %(fullname)s SET ({settings})"
    )
    event.listen(table, "after_create", change.execute_if(dialect="postgresql"))
    return table


class Tables:
    """The tables in one schema (None: the connection's default).

    Make them with `tables_in(schema)`.
    """

    def __init__(self, schema: str | None) -> None:
        self.schema = schema
        self.metadata = metadata = sa.MetaData(schema=schema)
        options: dict[str, Any] = {
            "mysql_engine": "InnoDB",
            "mariadb_engine": "InnoDB",
            "mysql_charset": "utf8mb4",
            "mariadb_charset": "utf8mb4",
        }

        self.outbox = sa.Table(
            PREFIX + "outbox",
            metadata,
            sa.Column(
                "position",
                POSITION,
                # CACHE 1: a cached sequence hands out positions in another order than it is asked
                sa.Identity(always=True, cache=1),
                primary_key=True,
                autoincrement=True,
            ),
            sa.Column("id", Id, nullable=False),
            sa.Column("partition", sa.SmallInteger, nullable=False),
            sa.Column("topic", Bytewise, nullable=False),
            sa.Column("key", Bytewise),
            sa.Column("headers", LongText, nullable=False),
            sa.Column("body", Body, nullable=False),
            sa.Column("created_at", Moment, nullable=False),
            sqlite_autoincrement=True,
            **options,
        )
        # Every row dies young: vacuum by what died, not by a fifth of what a backlog left behind.
        _stored(
            self.outbox,
            autovacuum_vacuum_scale_factor="0.01",
            autovacuum_vacuum_threshold="1000",
            autovacuum_vacuum_cost_limit="2000",
        )
        self.key_lock = (
            sa.Table(  # rows only on MariaDB/MySQL, which have no advisory transaction locks
                PREFIX + "key_lock",
                metadata,
                sa.Column("number", sa.SmallInteger, primary_key=True, autoincrement=False),
                **options,
            )
        )
        self.blocked_key = sa.Table(
            PREFIX + "blocked_key",
            metadata,
            sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
            # '' for a message without a key, which blocks only itself
            sa.Column("key", Bytewise, primary_key=True),
            sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("until", Moment),  # NULL: parked, until an operator says otherwise
            sa.Column("attempts", sa.Integer, nullable=False),
            sa.Column("error_code", Bytewise, nullable=False),
            sa.Column("error", LongText, nullable=False),
            **options,
        )
        self.dead_letter = sa.Table(
            PREFIX + "dead_letter",
            metadata,
            sa.Column("id", Id, primary_key=True),
            sa.Column("position", sa.BigInteger, nullable=False),
            sa.Column("partition", sa.SmallInteger, nullable=False),
            sa.Column("topic", Bytewise, nullable=False),
            sa.Column("key", Bytewise),
            sa.Column("headers", LongText, nullable=False),
            sa.Column("body", Body, nullable=False),
            sa.Column("created_at", Moment, nullable=False),
            sa.Column("died_at", Moment, nullable=False),
            sa.Column("attempts", sa.Integer, nullable=False),
            sa.Column("error_code", Bytewise, nullable=False),
            sa.Column("error", LongText, nullable=False),
            **options,
        )
        self.partition_lease = sa.Table(
            PREFIX + "partition_lease",
            metadata,
            sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
            sa.Column("owner", Id),
            sa.Column("epoch", sa.BigInteger, nullable=False),
            sa.Column("until", Moment),
            **options,
        )
        self.inbox = sa.Table(
            PREFIX + "inbox",
            metadata,
            sa.Column("consumer", Bytewise, primary_key=True),
            sa.Column("message_id", Id, primary_key=True),
            sa.Column(
                "body_hash",
                Digest,
                nullable=False,
            ),
            sa.Column("handled_at", Moment, nullable=False),
            **options,
        )
        self.saga = sa.Table(
            PREFIX + "saga",
            metadata,
            sa.Column("id", Id, primary_key=True),
            sa.Column("source", Bytewise, nullable=False),
            sa.Column("name", Bytewise, nullable=False),
            sa.Column("version", sa.Integer, nullable=False),
            sa.Column("shape", Bytewise, nullable=False),
            sa.Column("business_key", Bytewise),
            sa.Column("correlation_id", Bytewise, nullable=False),
            sa.Column("state", Bytewise, nullable=False),
            sa.Column("revision", sa.BigInteger, nullable=False),
            sa.Column("data", LongText, nullable=False),
            sa.Column("progress", LongText, nullable=False),
            sa.Column(
                "input_hash",
                Digest,
                nullable=False,
            ),
            sa.Column("reason", LongText),
            sa.Column("due_at", Moment),  # NULL: ended, or waiting for somebody else
            sa.Column("owner", Id),
            sa.Column("lease_until", Moment),
            sa.Column("epoch", sa.BigInteger, nullable=False),
            sa.Column("started_at", Moment, nullable=False),
            sa.Column("updated_at", Moment, nullable=False),
            sa.Column("ended_at", Moment),
            sa.Index(PREFIX + "saga_due", "due_at"),
            sa.Index(PREFIX + "saga_correlation", "correlation_id"),
            **options,
        )
        # Room for HOT updates; and those that are not HOT leave dead entries at the due end of an
        # index, while the rows of ended sagas push the default threshold ever further out.
        _stored(
            self.saga,
            fillfactor="80",
            autovacuum_vacuum_scale_factor="0.01",
            autovacuum_vacuum_threshold="1000",
        )
        self.saga_history = sa.Table(
            PREFIX + "saga_history",
            metadata,
            sa.Column("saga_id", Id, primary_key=True),
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("revision", sa.BigInteger, nullable=False),
            sa.Column("transition", Bytewise, nullable=False),
            sa.Column("step", Bytewise),
            sa.Column("attempt", sa.Integer),
            sa.Column("started_at", Moment),
            sa.Column("at", Moment, nullable=False),
            sa.Column("detail", LongText),
            **options,
        )


@cache
def tables_in(schema: str | None = None) -> Tables:
    """The tables in this schema; the same object for the same schema.

    Raises:
        ValueError: A schema name that is not a plain identifier; it is never quoted into SQL by
        us.
    """
    if schema is not None and not (schema.isidentifier() and schema.isascii()):
        raise ValueError(f"{schema!r} is not a schema name; use ASCII letters, digits and '_'")
    return Tables(schema)
