"""Circuit breakers, shared by all processes.

Frozen, as every revision: the types are written out.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from outbox_saga_migrations.steps import Steps

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# What `downgrade` loses: nothing, for breakers count anew.
drops: tuple[str, ...] = ()

PREFIX = "outbox_saga_"

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
INNODB = {
    "mysql_engine": "InnoDB",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
}


def upgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    steps.create_table(
        PREFIX + "breaker",
        sa.Column("name", BYTEWISE, primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("until", MOMENT),
        sa.Column("probe_until", MOMENT),
        sa.Column("trips", sa.BigInteger, nullable=False),
        sa.Column("opened_at", MOMENT),
        sa.Column("changed_at", MOMENT, nullable=False),
        **INNODB,
    )


def downgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    steps.drop_table(PREFIX + "breaker")
