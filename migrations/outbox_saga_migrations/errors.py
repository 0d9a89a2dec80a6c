"""Why a database was left as it is.

OutboxSagaError
├── UpgradeBusy          somebody else is changing our tables right now
├── UpgradeRefused       what stands in the database is not what a revision starts from
└── DowngradeRefused     messages or sagas would be lost
"""

from __future__ import annotations

from outbox_saga.errors import OutboxSagaError


class UpgradeBusy(OutboxSagaError):
    """Another process holds the upgrade lock, or a table is in use; nothing changed. Try again."""


class UpgradeRefused(OutboxSagaError):
    """A table of our name is not like ours, or the revision is unknown; it says which."""


class DowngradeRefused(OutboxSagaError):
    """Unpublished messages or unfinished sagas would be lost. Let them end, or pass `force`."""
