"""The shape of our tables, defined once for PostgreSQL, MariaDB/MySQL and SQLite.

The migrations build exactly this (a test compares them). Keys and ids compare as bytes on every
database: under MariaDB's default collation 'ABC' equals 'abc ', which would drop different
messages.
"""

from __future__ import annotations

import datetime as dt
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

PREFIX = "outbox_saga_"
PARTITIONS = 64
KEY_LOCKS = 1024


class Id(TypeDecorator[UUID]):
    """A UUID: native on PostgreSQL, 32 hexadecimal digits compared as bytes elsewhere."""

    impl = sa.CHAR(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.CHAR(32, charset="ascii", collation="ascii_bin"))
        return dialect.type_descriptor(sa.CHAR(32))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return value.hex

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        if value is None or isinstance(value, UUID):
            return value
        return UUID(value)


class Bytewise(TypeDecorator[str]):
    """Text of at most 255 UTF-8 bytes that compares as bytes.

    Collation "C", VARBINARY, or SQLite's BINARY.
    """

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            # not by type_descriptor(): that of psycopg turns TEXT into VARCHAR
            return postgresql.TEXT(collation="C")
        if dialect.name in ("mysql", "mariadb"):
            # every utf8mb4 collation of MariaDB folds or pads something
            return dialect.type_descriptor(mysql.VARBINARY(255))
        return dialect.type_descriptor(sa.Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        if value is None or dialect.name not in ("mysql", "mariadb"):
            return value
        return value.encode("utf-8")

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return value.decode("utf-8") if isinstance(value, bytes | bytearray) else value


class Moment(TypeDecorator[dt.datetime]):
    """A moment in UTC with microseconds; always aware in Python.

    SQLite keeps `YYYY-MM-DD HH:MM:SS.ffffff`.
    """

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))  # without (6) fractions are cut
        return dialect.type_descriptor(sa.DateTime())

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; pass an aware datetime")
        in_utc = value.astimezone(dt.UTC)
        return in_utc if dialect.name == "postgresql" else in_utc.replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        moment: dt.datetime = value
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


# metadata and reasons: never compared, never NUL (refused at the door)
LONG_TEXT = sa.Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
BODY = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
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
            sa.Column("headers", LONG_TEXT, nullable=False),
            sa.Column("body", BODY, nullable=False),
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
            sa.Column("error", LONG_TEXT, nullable=False),
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
            sa.Column("headers", LONG_TEXT, nullable=False),
            sa.Column("body", BODY, nullable=False),
            sa.Column("created_at", Moment, nullable=False),
            sa.Column("died_at", Moment, nullable=False),
            sa.Column("attempts", sa.Integer, nullable=False),
            sa.Column("error_code", Bytewise, nullable=False),
            sa.Column("error", LONG_TEXT, nullable=False),
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
                sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb"),
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
            sa.Column("data", LONG_TEXT, nullable=False),
            sa.Column("progress", LONG_TEXT, nullable=False),
            sa.Column(
                "input_hash",
                sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb"),
                nullable=False,
            ),
            sa.Column("reason", LONG_TEXT),
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
            sa.Column("detail", LONG_TEXT),
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
