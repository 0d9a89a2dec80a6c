"""Delays, the archive, messages that wait to be handled, processes, and what operators did.

Frozen, as every revision: the types are written out.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from outbox_saga_migrations.steps import Steps

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What `downgrade` loses.
drops = ("delayed", "inbox_waiting")

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
    steps.add_column(
        PREFIX + "saga",
        sa.Column("deaths", sa.Integer, nullable=False, server_default=sa.text("0")),
    )
    _operating(steps)


def downgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    for name in (
        "operator_action",
        "process",
        "inbox_claim",
        "inbox_waiting",
        "archive",
        "delayed",
    ):
        steps.drop_table(PREFIX + name)
    steps.drop_column(PREFIX + "saga", "deaths")
    steps.drop_index(PREFIX + "inbox_handled", PREFIX + "inbox")
    steps.drop_column(PREFIX + "partition_lease", "revisit")
    steps.drop_column(PREFIX + "dead_letter", "trace")
    steps.drop_column(PREFIX + "dead_letter", "error_class")
    if steps.on_mysql():
        steps.delete_rows(PREFIX + "key_lock", "number", 1024)


def _message() -> list[sa.Column[object]]:
    return [
        sa.Column("partition", sa.SmallInteger, nullable=False),
        sa.Column("topic", BYTEWISE, nullable=False),
        sa.Column("key", BYTEWISE),
        sa.Column("headers", LONG_TEXT, nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
    ]


def _publishing(steps: Steps) -> None:
    steps.create_table(
        PREFIX + "delayed",
        sa.Column("id", ID, primary_key=True),
        sa.Column("due_at", MOMENT, nullable=False),
        *_message(),
        **INNODB,
    )
    steps.create_index(PREFIX + "delayed_due", PREFIX + "delayed", ["due_at"])
    steps.create_table(
        PREFIX + "archive",
        sa.Column("published_at", MOMENT, primary_key=True),
        sa.Column("id", ID, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        *_message(),
        postgresql_partition_by="RANGE (published_at)",
        **INNODB,
    )
    steps.add_default_partition(PREFIX + "archive", PREFIX + "archive_rest")
    steps.add_column(PREFIX + "dead_letter", sa.Column("error_class", BYTEWISE))
    steps.add_column(PREFIX + "dead_letter", sa.Column("trace", LONG_TEXT))
    steps.add_column(PREFIX + "partition_lease", sa.Column("revisit", sa.BigInteger))
    if steps.on_mysql():
        rows = [{"number": n} for n in range(1024, 2048)]
        steps.insert_missing(PREFIX + "key_lock", rows)


def _handling(steps: Steps) -> None:
    steps.create_index(PREFIX + "inbox_handled", PREFIX + "inbox", ["handled_at"])
    waiting = PREFIX + "inbox_waiting"
    steps.create_table(
        waiting,
        sa.Column(
            "position",
            POSITION,
            sa.Identity(always=True, cache=1),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("consumer", BYTEWISE, nullable=False),
        sa.Column("message_id", ID, nullable=False),
        sa.Column("topic", BYTEWISE, nullable=False),
        sa.Column("key", BYTEWISE),
        sa.Column("headers", LONG_TEXT, nullable=False),
        sa.Column("body", BODY, nullable=False),
        sa.Column("arrived_at", MOMENT, nullable=False),
        sa.Column("until", MOMENT),
        sa.Column("failed_at", MOMENT),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error_code", BYTEWISE, nullable=False),
        sa.Column("error", LONG_TEXT, nullable=False),
        sa.Column("error_class", BYTEWISE),
        sa.Column("trace", LONG_TEXT),
        sa.Column("owner", ID),
        sa.Column("lease_until", MOMENT),
        sqlite_autoincrement=True,
        **INNODB,
    )
    steps.create_index(waiting + "_key", waiting, ["consumer", "key", "position"])
    steps.create_index(waiting + "_id", waiting, ["consumer", "message_id"], unique=True)
    steps.create_index(waiting + "_until", waiting, ["until"])
    steps.create_table(
        PREFIX + "inbox_claim",
        sa.Column("consumer", BYTEWISE, primary_key=True),
        sa.Column("message_id", ID, primary_key=True),
        sa.Column("owner", ID, nullable=False),
        sa.Column("until", MOMENT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        **INNODB,
    )


def _operating(steps: Steps) -> None:
    steps.create_table(
        PREFIX + "process",
        sa.Column("id", ID, primary_key=True),
        sa.Column("kind", BYTEWISE, nullable=False),
        sa.Column("service", BYTEWISE, nullable=False),
        sa.Column("host", BYTEWISE, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.Column("until", MOMENT, nullable=False),
        sa.Column("detail", LONG_TEXT, nullable=False),
        **INNODB,
    )
    steps.create_table(
        PREFIX + "operator_action",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("operator", BYTEWISE, nullable=False),
        sa.Column("action", BYTEWISE, nullable=False),
        sa.Column("subject", BYTEWISE, nullable=False),
        sa.Column("reason", LONG_TEXT, nullable=False),
        sa.Column("detail", LONG_TEXT, nullable=False),
        **INNODB,
    )
    steps.create_index(PREFIX + "operator_action_at", PREFIX + "operator_action", ["at"])
