"""Take our tables away again, unless something would be lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Connection

from outbox_saga.tables import PREFIX, Tables, tables_in
from outbox_saga_migrations.errors import DowngradeRefused, UpgradeRefused
from outbox_saga_migrations.locking import LOCK_TIMEOUT, WAIT, exclusive
from outbox_saga_migrations.revisions import current, passed
from outbox_saga_migrations.scripts import (
    BASE,
    VERSION_TABLE,
    online,
    resolve,
    script_directory,
)
from outbox_saga_migrations.steps import Steps


def downgrade(
    connection: Connection,
    *,
    schema: str | None = None,
    revision: str = BASE,
    force: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    wait: float = WAIT,
) -> None:
    """Afterwards the database is at this earlier revision, and no message or saga was lost.

    A table that would be dropped while it holds unpublished messages, dead letters or unfinished
    sagas stops it before anything changes, unless `force` is set. What has ended is not counted:
    handled messages and ended sagas go with their tables. At `base` nothing of ours is left but
    the schema itself, which may hold tables of others.

    It runs in the caller's transaction and does not commit, except that MariaDB and MySQL commit
    at every DROP TABLE, and with it whatever the caller did before. PostgreSQL and SQLite keep
    everybody else from writing between the count and the drop; on MariaDB and MySQL stop the
    service first.

    Args:
        connection: Where to; a transaction is begun on it if there is none.
        schema: Where our tables are; None is the connection's default.
        revision: How far back; `base` is before the first.
        force: Lose what is there.
        lock_timeout: How long a statement waits for a table in use, in seconds; not on SQLite.
        wait: How long to wait for another process's upgrade to end, in seconds; not on SQLite.

    Raises:
        DowngradeRefused: Something would be lost; the message counts it.
        UpgradeBusy: Another upgrade, or somebody using a table, did not end in time.
        UpgradeRefused: The revision is unknown, or the database is before it.
        AutocommitRefused: The connection commits each statement by itself (PostgreSQL, SQLite).
    """
    tables = tables_in(schema)
    target = resolve(revision)
    with exclusive(connection, wait=wait, lock_timeout=lock_timeout):
        at = current(connection, schema=schema)
        if at is None or at == target:
            return
        path = _path(at, target)
        dropped = [name for step in path for name in getattr(step.module, "drops", ())]
        _lock(connection, tables, dropped)
        if not force:
            _refuse_loss(connection, tables, dropped)
        _run(connection, schema, revision)
        if target is None:
            version = sa.Table(VERSION_TABLE, sa.MetaData(), schema=schema)
            version.drop(connection, checkfirst=True)


def _path(at: str, target: str | None) -> Sequence[Script]:
    """The revisions to undo, the latest first."""
    if target is not None and target not in passed(at):
        raise UpgradeRefused(f"the database is at {at}, which does not come after {target}")
    kept = set() if target is None else passed(target)
    below = script_directory().iterate_revisions(resolve(at), BASE)
    return [script for script in below if script.revision not in kept]


def _run(connection: Connection, schema: str | None, revision: str) -> None:
    def path(at: Any, _: MigrationContext) -> Iterable[Any]:
        return script_directory()._downgrade_revs(revision, at)  # noqa: SLF001

    context = online(connection, schema, fn=path)
    context.run_migrations(steps=Steps(context))


def _lock(connection: Connection, tables: Tables, names: Iterable[str]) -> None:
    """Nobody writes to these until the transaction ends; on SQLite nobody writes at all."""
    if connection.dialect.name != "postgresql":
        return
    inspector = sa.inspect(connection)
    preparer = connection.dialect.identifier_preparer
    for name in names:
        if inspector.has_table(PREFIX + name, schema=tables.schema):
            table = preparer.format_table(sa.table(PREFIX + name, schema=tables.schema))
            connection.exec_driver_sql(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")


def _refuse_loss(connection: Connection, tables: Tables, dropped: Iterable[str]) -> None:
    inspector = sa.inspect(connection)
    counted = {
        "outbox": ("unpublished messages", sa.select(sa.func.count()).select_from(tables.outbox)),
        "delayed": (
            "delayed messages",
            sa.select(sa.func.count()).select_from(tables.delayed),
        ),
        "inbox_waiting": (
            "messages that wait to be handled",
            sa.select(sa.func.count()).select_from(tables.inbox_waiting),
        ),
        "dead_letter": (
            "dead letters",
            sa.select(sa.func.count()).select_from(tables.dead_letter),
        ),
        "barrier": (
            "steps that sagas commanded, which may be undone yet",
            sa.select(sa.func.count())
            .select_from(tables.barrier)
            .where(tables.barrier.c.state == "done"),
        ),
        "reply": (
            "answers to requests, which nobody could ask for again",
            sa.select(sa.func.count()).select_from(tables.reply),
        ),
        "saga": (
            "unfinished sagas",
            sa.select(sa.func.count())
            .select_from(tables.saga)
            .where(tables.saga.c.ended_at.is_(None)),
        ),
    }
    lost: list[str] = []
    for name in dropped:
        what, question = counted[name]
        # MariaDB: a downgrade that died half way has dropped some of them
        if not inspector.has_table(PREFIX + name, schema=tables.schema):
            continue
        if count := connection.scalar(question):
            lost.append(f"{count} {what}")
    if lost:
        raise DowngradeRefused(
            f"{', '.join(lost)} would be lost; let them end first, or pass force (--force)"
        )
