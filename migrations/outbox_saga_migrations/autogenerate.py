"""A service's own `alembic revision --autogenerate` never proposes to drop our tables.

Nothing has to be set for that: this module is the entry point `alembic.autogenerate.outbox_saga`
in the group `alembic.plugins`, and Alembic (1.18 and later) takes every plugin of that first name.
It drops our tables' drops from the list of changes after everybody else has written to it.

Two cases need `include_name` from here instead, in the service's `env.py`: Alembic before 1.18,
and an `autogenerate_plugins` of the service's own that leaves us out.

    context.configure(..., include_name=outbox_saga_migrations.autogenerate.include_name)

Alembic imports this module while it is itself half imported, in every command of every service
that installed us: nothing of Alembic, SQLAlchemy or ours is imported before it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin
    from alembic.util import PriorityDispatchResult

# That of outbox_saga.tables, which would bring SQLAlchemy and pydantic along.
PREFIX = "outbox_saga_"


def setup(plugin: Plugin) -> None:
    """Called by Alembic, once a process."""
    from alembic.util import DispatchPriority  # noqa: PLC0415

    plugin.add_autogenerate_comparator(
        leave_ours_alone, "autogenerate", priority=DispatchPriority.LAST
    )


def leave_ours_alone(context: AutogenContext, changes: UpgradeOps) -> PriorityDispatchResult:
    """No change drops a table of ours or an index of it, in whatever schema.

    A table that the service names in its own metadata is the service's: whatever is proposed for
    it stays.
    """
    from alembic.operations.ops import (  # noqa: PLC0415
        DropIndexOp,
        DropTableOp,
        ModifyTableOps,
    )
    from alembic.util import PriorityDispatchResult  # noqa: PLC0415

    theirs = {table.name for table in context.sorted_tables}

    def is_kept(change: Any) -> bool:
        if not isinstance(change, DropTableOp | DropIndexOp | ModifyTableOps):
            return True
        table = change.table_name
        return table is None or not table.startswith(PREFIX) or table in theirs

    changes.ops[:] = [change for change in changes.ops if is_kept(change)]
    return PriorityDispatchResult.CONTINUE


def include_name(
    name: str | None, type_: str, parent_names: Mapping[str, str | None] | None = None
) -> bool:
    """For `context.configure(include_name=...)`: False for a table of ours, else True."""
    del parent_names  # in whatever schema
    return not (type_ == "table" and name is not None and name.startswith(PREFIX))


class _Plugin(ModuleType):
    """Alembic 1.18 iterates over what an entry point names; later ones take the module itself."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _Plugin
