"""The types of our columns, as each database has to store them to compare them as bytes.

A dialect's own types are imported when that dialect asks: importing all three costs half of what
SQLAlchemy costs.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine


class Id(TypeDecorator[UUID]):
    """A UUID: native on PostgreSQL, 32 hexadecimal digits compared as bytes elsewhere."""

    impl = sa.CHAR(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.Uuid())
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql

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
            from sqlalchemy.dialects import postgresql

            # not by type_descriptor(): that of psycopg turns TEXT into VARCHAR
            return postgresql.TEXT(collation="C")
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql

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
            return dialect.type_descriptor(sa.TIMESTAMP(timezone=True))
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql

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


class LongText(TypeDecorator[str]):
    """Metadata and reasons: never compared, never with NUL (refused at the door)."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql

            text = mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin")
            return dialect.type_descriptor(text)
        return sa.Text()  # type_descriptor() of psycopg would make it VARCHAR


class Body(TypeDecorator[bytes]):
    """Bytes as they came: JSONB folds duplicate keys, refuses NUL and changes numbers."""

    impl = sa.LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql

            return dialect.type_descriptor(mysql.LONGBLOB())
        return dialect.type_descriptor(sa.LargeBinary())


class Digest(TypeDecorator[bytes]):
    """The 32 bytes of a SHA-256."""

    impl = sa.LargeBinary(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql

            return dialect.type_descriptor(mysql.BINARY(32))
        return dialect.type_descriptor(sa.LargeBinary(32))
