"""Replies to requests that no saga has made; why steps failed, in one word.

Frozen, as every revision: the types are written out.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from outbox_saga_migrations.steps import Steps

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# What `downgrade` loses: answers that nobody may have read yet.
drops = ("reply",)

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
INNODB = {
    "mysql_engine": "InnoDB",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
}


def upgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    steps.create_table(
        PREFIX + "reply",
        sa.Column("request_id", ID, primary_key=True),
        sa.Column("outcome", BYTEWISE, nullable=False),
        sa.Column("answer", LONG_TEXT, nullable=False),
        sa.Column("answered_at", MOMENT, nullable=False),
        **INNODB,
    )
    steps.create_index(PREFIX + "reply_answered", PREFIX + "reply", ["answered_at"])
    steps.add_column(PREFIX + "saga_history", sa.Column("code", BYTEWISE))


def downgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    steps.drop_column(PREFIX + "saga_history", "code")
    steps.drop_table(PREFIX + "reply")
