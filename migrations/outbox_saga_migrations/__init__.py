"""Our tables in a service's own database: made, checked, and taken away again.

Read `upgrading`, then `checking`; `versions/` holds what each revision does, and `autogenerate`
keeps a service's own `alembic revision --autogenerate` from proposing to drop our tables.

    from outbox_saga_migrations import upgrade

    with engine.begin() as connection:
        upgrade(connection)

    async with async_engine.begin() as connection:
        await connection.run_sync(upgrade)

A service with its own Alembic history may call it from a revision of its own, and so has one
history, one command and one order of things:

    def upgrade() -> None:
        outbox_saga_migrations.upgrade(op.get_bind())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox_saga_migrations.checking import Difference, check
    from outbox_saga_migrations.downgrading import downgrade
    from outbox_saga_migrations.errors import DowngradeRefused, UpgradeBusy, UpgradeRefused
    from outbox_saga_migrations.offline import sql
    from outbox_saga_migrations.revisions import current, head
    from outbox_saga_migrations.scripts import SCRIPT_LOCATION, VERSION_TABLE
    from outbox_saga_migrations.upgrading import upgrade

__all__ = [
    "SCRIPT_LOCATION",
    "VERSION_TABLE",
    "Difference",
    "DowngradeRefused",
    "UpgradeBusy",
    "UpgradeRefused",
    "check",
    "current",
    "downgrade",
    "head",
    "sql",
    "upgrade",
]

_MODULES = {
    "SCRIPT_LOCATION": "scripts",
    "VERSION_TABLE": "scripts",
    "Difference": "checking",
    "DowngradeRefused": "errors",
    "UpgradeBusy": "errors",
    "UpgradeRefused": "errors",
    "check": "checking",
    "current": "revisions",
    "downgrade": "downgrading",
    "head": "revisions",
    "sql": "offline",
    "upgrade": "upgrading",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: Alembic imports `autogenerate`, and with it this module, while Alembic
    # itself is still half imported.
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
