"""${message}

Frozen: nothing here may follow a definition that goes on to change.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
from outbox_saga_migrations.steps import Steps

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# The tables, without prefix, whose contents `downgrade` loses.
drops: tuple[str, ...] = ()


def upgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    ${upgrades if upgrades else "pass"}


def downgrade(steps: Steps | None = None) -> None:
    steps = steps or Steps(op.get_context())
    ${downgrades if downgrades else "pass"}
