"""The outbox, blocked keys, dead letters, leases, the inbox, sagas and their history.

Frozen: the types are written out, because the definitions in `outbox_saga.tables` go on to change
and this revision must not.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from outbox_saga_migrations.steps import Steps

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# What `downgrade` loses.
drops = ("outbox", "dead_letter", "saga")

PREFIX = "outbox_saga_"

ID = (
    sa.CHAR(32)
    .with_variant(postgresql.UUID(), "postgresql")
    .with_variant(mysql.CHAR(32, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
BYTEWISE = (
    sa.Text()
    .with_variant(postgresql.TEXT(collation="C"), "postgresql")
    .with_variant(mysql.VARBINARY(255), "mysql", "mariadb")
)
MOMENT = (
    sa.DateTime()
    .with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
    .with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
)
LONG_TEXT = sa.Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
BODY = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

INNODB = {
    "mysql_engine": "InnoDB",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
}


def upgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    _publishing(steps)
    _handling(steps)
    _sagas(steps)


def downgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    for name in (
        "saga_history",
        "saga",
        "inbox",
        "partition_lease",
        "dead_letter",
        "blocked_key",
        "key_lock",
        "outbox",
    ):
        steps.drop_table(PREFIX + name)


def _publishing(steps: Steps) -> None:
    steps.create_table(
        PREFIX + "outbox",
        sa.Column(
            "position",
            POSITION,
            sa.Identity(always=True, cache=1),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("id", ID, nullable=False),
        sa.Column("partition", sa.SmallInteger, nullable=False),
        sa.Column("topic", BYTEWISE, nullable=False),
        sa.Column("key", BYTEWISE),
        sa.Column("headers", LONG_TEXT, nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sqlite_autoincrement=True,
        **INNODB,
    )
    steps.set_storage(
        PREFIX + "outbox",
        autovacuum_vacuum_scale_factor="0.01",
        autovacuum_vacuum_threshold="1000",
        autovacuum_vacuum_cost_limit="2000",
    )
    steps.create_table(
        PREFIX + "key_lock",
        sa.Column("number", sa.SmallInteger, primary_key=True, autoincrement=False),
        **INNODB,
    )
    if steps.on_mysql():
        steps.insert_missing(PREFIX + "key_lock", [{"number": n} for n in range(1024)])
    steps.create_table(
        PREFIX + "blocked_key",
        sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("key", BYTEWISE, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("until", MOMENT),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error_code", BYTEWISE, nullable=False),
        sa.Column("error", LONG_TEXT, nullable=False),
        **INNODB,
    )
    steps.create_table(
        PREFIX + "dead_letter",
        sa.Column("id", ID, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("partition", sa.SmallInteger, nullable=False),
        sa.Column("topic", BYTEWISE, nullable=False),
        sa.Column("key", BYTEWISE),
        sa.Column("headers", LONG_TEXT, nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("died_at", MOMENT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error_code", BYTEWISE, nullable=False),
        sa.Column("error", LONG_TEXT, nullable=False),
        **INNODB,
    )
    steps.create_table(
        PREFIX + "partition_lease",
        sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("owner", ID),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("until", MOMENT),
        **INNODB,
    )
    leases = [{"partition": n, "epoch": 0} for n in range(64)]
    steps.insert_missing(PREFIX + "partition_lease", leases)


def _handling(steps: Steps) -> None:
    steps.create_table(
        PREFIX + "inbox",
        sa.Column("consumer", BYTEWISE, primary_key=True),
        sa.Column("message_id", ID, primary_key=True),
        sa.Column("body_hash", HASH, nullable=False),
        sa.Column("handled_at", MOMENT, nullable=False),
        **INNODB,
    )


def _sagas(steps: Steps) -> None:
    steps.create_table(
        PREFIX + "saga",
        sa.Column("id", ID, primary_key=True),
        sa.Column("source", BYTEWISE, nullable=False),
        sa.Column("name", BYTEWISE, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("shape", BYTEWISE, nullable=False),
        sa.Column("business_key", BYTEWISE),
        sa.Column("correlation_id", BYTEWISE, nullable=False),
        sa.Column("state", BYTEWISE, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("data", LONG_TEXT, nullable=False),
        sa.Column("progress", LONG_TEXT, nullable=False),
        sa.Column("input_hash", HASH, nullable=False),
        sa.Column("reason", LONG_TEXT),
        sa.Column("due_at", MOMENT),
        sa.Column("owner", ID),
        sa.Column("lease_until", MOMENT),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT),
        **INNODB,
    )
    steps.set_storage(
        PREFIX + "saga",
        fillfactor="80",
        autovacuum_vacuum_scale_factor="0.01",
        autovacuum_vacuum_threshold="1000",
    )
    steps.create_index(PREFIX + "saga_correlation", PREFIX + "saga", ["correlation_id"])
    steps.create_index(PREFIX + "saga_due", PREFIX + "saga", ["due_at"])
    steps.create_table(
        PREFIX + "saga_history",
        sa.Column("saga_id", ID, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("transition", BYTEWISE, nullable=False),
        sa.Column("step", BYTEWISE),
        sa.Column("attempt", sa.Integer),
        sa.Column("started_at", MOMENT),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("detail", LONG_TEXT),
        **INNODB,
    )
