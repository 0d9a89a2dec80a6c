"""Sagas are found by when they ended, so that those of long ago can be removed.

Frozen, as every revision.
"""

from __future__ import annotations

from alembic import op

from outbox_saga_migrations.steps import Steps

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PREFIX = "outbox_saga_"


def upgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    steps.create_index(PREFIX + "saga_ended", PREFIX + "saga", ["ended_at", "business_key"])


def downgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    steps.drop_index(PREFIX + "saga_ended", PREFIX + "saga")
