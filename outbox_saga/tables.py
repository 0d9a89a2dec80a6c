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
KEY_LOCKS = 1024  # for those who publish
INBOX_LOCKS = 1024  # for those who handle; numbers of their own, so that neither waits in a circle


DEFAULT_PARTITION = "rest"  # of the archive, for days that have no partition of their own

# SQLite gives AUTOINCREMENT only to INTEGER, and without it re-uses the positions of deleted rows
POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _message() -> list[sa.Column[Any]]:
    """What every table that keeps whole messages keeps of one."""
    return [
        sa.Column("partition", sa.SmallInteger, nullable=False),
        sa.Column("topic", Bytewise, nullable=False),
        sa.Column("key", Bytewise),
        sa.Column("headers", LongText, nullable=False),
        sa.Column("body", Body, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
    ]


def _failure() -> list[sa.Column[Any]]:
    """What every table that keeps failures keeps of the last one."""
    return [
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error_code", Bytewise, nullable=False),
        sa.Column("error", LongText, nullable=False),
    ]


def _with_default_partition(table: sa.Table) -> sa.Table:
    """The table keeps every row, though nobody makes partitions (PostgreSQL)."""
    make = sa.DDL(  # type: ignore[no-untyped-call]
        f"CREATE TABLE %(fullname)s_{DEFAULT_PARTITION} PARTITION OF %(fullname)s DEFAULT"
    )
    event.listen(table, "after_create", make.execute_if(dialect="postgresql"))
    return table


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
            *_message(),
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
        self.delayed = sa.Table(  # enter the outbox when they are due
            PREFIX + "delayed",
            metadata,
            sa.Column("id", Id, primary_key=True),
            sa.Column("due_at", Moment, nullable=False),
            *_message(),
            sa.Index(PREFIX + "delayed_due", "due_at"),
            **options,
        )
        self.archive = _with_default_partition(
            sa.Table(  # what was published, for as long as it may be replayed
                PREFIX + "archive",
                metadata,
                sa.Column("published_at", Moment, primary_key=True),
                sa.Column("id", Id, primary_key=True),
                sa.Column("position", sa.BigInteger, nullable=False),
                *_message(),
                postgresql_partition_by="RANGE (published_at)",
                **options,
            )
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
            *_failure(),
            **options,
        )
        self.dead_letter = sa.Table(
            PREFIX + "dead_letter",
            metadata,
            sa.Column("id", Id, primary_key=True),
            sa.Column("position", sa.BigInteger, nullable=False),
            *_message(),
            sa.Column("died_at", Moment, nullable=False),
            *_failure(),
            # what was raised, and where: the publisher's own error has a code, not always a class
            sa.Column("error_class", Bytewise),
            sa.Column("trace", LongText),
            **options,
        )
        self.partition_lease = sa.Table(
            PREFIX + "partition_lease",
            metadata,
            sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
            sa.Column("owner", Id),
            sa.Column("epoch", sa.BigInteger, nullable=False),
            sa.Column("until", Moment),
            # Somebody has put a row back below what the owner has read: look again from here
            sa.Column("revisit", sa.BigInteger),
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
            sa.Index(PREFIX + "inbox_handled", "handled_at"),
            **options,
        )
        self.inbox_waiting = sa.Table(  # delivered and acknowledged, but not yet handled
            PREFIX + "inbox_waiting",
            metadata,
            sa.Column(
                "position",
                POSITION,
                sa.Identity(always=True, cache=1),
                primary_key=True,
                autoincrement=True,
            ),
            sa.Column("consumer", Bytewise, nullable=False),
            sa.Column("message_id", Id, nullable=False),
            sa.Column("topic", Bytewise, nullable=False),
            sa.Column("key", Bytewise),
            sa.Column("headers", LongText, nullable=False),
            sa.Column("body", Body, nullable=False),
            sa.Column("arrived_at", Moment, nullable=False),
            sa.Column("until", Moment),  # NULL: a dead letter, until an operator says otherwise
            sa.Column("failed_at", Moment),  # NULL: it has only stood behind another of its key
            *_failure(),
            sa.Column("error_class", Bytewise),
            sa.Column("trace", LongText),
            sa.Column("owner", Id),
            sa.Column("lease_until", Moment),
            sa.Index(PREFIX + "inbox_waiting_key", "consumer", "key", "position"),
            sa.Index(PREFIX + "inbox_waiting_id", "consumer", "message_id", unique=True),
            sa.Index(PREFIX + "inbox_waiting_until", "until"),
            sqlite_autoincrement=True,
            **options,
        )
        self.inbox_claim = sa.Table(  # of handlers whose effects are outside: duplicates wait
            PREFIX + "inbox_claim",
            metadata,
            sa.Column("consumer", Bytewise, primary_key=True),
            sa.Column("message_id", Id, primary_key=True),
            sa.Column("owner", Id, nullable=False),
            sa.Column("until", Moment, nullable=False),
            sa.Column("attempts", sa.Integer, nullable=False),
            **options,
        )
        self.barrier = sa.Table(  # what was commanded, and what came of it: once for each step
            PREFIX + "barrier",
            metadata,
            sa.Column("saga_id", Id, primary_key=True),
            sa.Column("step", Bytewise, primary_key=True),
            sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("state", Bytewise, nullable=False),
            sa.Column("answer", LongText),
            sa.Column("updated_at", Moment, nullable=False),
            sa.Index(PREFIX + "barrier_updated", "updated_at"),
            **options,
        )
        self.reply = sa.Table(  # what came back for requests that no saga has made
            PREFIX + "reply",
            metadata,
            sa.Column("request_id", Id, primary_key=True),
            sa.Column("outcome", Bytewise, nullable=False),
            sa.Column("answer", LongText, nullable=False),
            sa.Column("answered_at", Moment, nullable=False),
            sa.Index(PREFIX + "reply_answered", "answered_at"),
            **options,
        )
        self.breaker = sa.Table(  # one for each that has ever failed
            PREFIX + "breaker",
            metadata,
            sa.Column("name", Bytewise, primary_key=True),
            sa.Column("failures", sa.Integer, nullable=False),
            sa.Column("until", Moment),  # NULL: closed; then one call goes
            sa.Column("probe_until", Moment),  # one is on its way, and lost after this
            sa.Column("trips", sa.BigInteger, nullable=False),
            sa.Column("opened_at", Moment),
            sa.Column("changed_at", Moment, nullable=False),
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
            # Owners who died with it since its last transition
            sa.Column("deaths", sa.Integer, nullable=False, server_default=sa.text("0")),
            sa.Index(PREFIX + "saga_due", "due_at"),
            sa.Index(PREFIX + "saga_correlation", "correlation_id"),
            sa.Index(PREFIX + "saga_ended", "ended_at", "business_key"),
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
            sa.Column("code", Bytewise),  # why, in one word, for programs; NULL: nothing failed
            **options,
        )
        self.process = sa.Table(  # who is alive, by the database's clock
            PREFIX + "process",
            metadata,
            sa.Column("id", Id, primary_key=True),
            sa.Column("kind", Bytewise, nullable=False),
            sa.Column("service", Bytewise, nullable=False),
            sa.Column("host", Bytewise, nullable=False),
            sa.Column("pid", sa.Integer, nullable=False),
            sa.Column("started_at", Moment, nullable=False),
            sa.Column("seen_at", Moment, nullable=False),
            sa.Column("until", Moment, nullable=False),
            sa.Column("detail", LongText, nullable=False),
            **options,
        )
        self.operator_action = sa.Table(  # what people did, and why; never changed
            PREFIX + "operator_action",
            metadata,
            sa.Column("id", Id, primary_key=True),
            sa.Column("at", Moment, nullable=False),
            sa.Column("operator", Bytewise, nullable=False),
            sa.Column("action", Bytewise, nullable=False),
            sa.Column("subject", Bytewise, nullable=False),
            sa.Column("reason", LongText, nullable=False),
            sa.Column("detail", LongText, nullable=False),
            sa.Index(PREFIX + "operator_action_at", "at"),
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
