"""`outbox-saga db`: our tables in one database, from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import sqlalchemy as sa

from outbox_saga.database_urls import connect_args, shown_url, sync_url
from outbox_saga_migrations import check as find_differences
from outbox_saga_migrations import current as current_revision
from outbox_saga_migrations import downgrade as take_away
from outbox_saga_migrations import head
from outbox_saga_migrations import sql as write_sql
from outbox_saga_migrations import upgrade as bring_up
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import refuse_missing_file
from outbox_saga_relay.printing import json_option, print_json, print_rows
from outbox_saga_relay.roles.command import roles
from outbox_saga_relay.typed import refuse_typed

lock_timeout_option = click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a statement waits for a table in use before everything is given up.",
)


@click.group()
def db() -> None:
    """Make, check or remove our tables in a service's database."""


db.add_command(roles)


@db.command()
@database_url_option
@schema_option
@click.option("--revision", default="head", show_default=True, help="How far.")
@lock_timeout_option
@json_option
def upgrade(
    database_url: str, schema: str | None, revision: str, lock_timeout: float, *, as_json: bool
) -> None:
    """Make our tables, or bring them up to date.

    Twice, or twice at once, is harmless. PostgreSQL: a --schema that does not exist is made.
    """
    with _transaction(database_url) as connection:
        before = current_revision(connection, schema=schema)
        bring_up(connection, schema=schema, revision=revision, lock_timeout=lock_timeout)
        after = current_revision(connection, schema=schema)
    _print_change(database_url, before, after, as_json=as_json)


@db.command()
@database_url_option
@schema_option
@json_option
def current(database_url: str, schema: str | None, *, as_json: bool) -> None:
    """Show the database's revision.

    And the one this version of outbox-saga needs.
    """
    with _transaction(database_url, existing=True) as connection:
        revision = current_revision(connection, schema=schema)
    if as_json:
        print_json(
            {
                "database": shown_url(database_url),
                "revision": revision,
                "head": head(),
                "up_to_date": revision == head(),
            }
        )
        return
    print_rows(
        ("database", "revision", "needed"),
        [(shown_url(database_url), revision or "none", head())],
    )


@db.command()
@database_url_option
@schema_option
@json_option
@click.pass_context
def check(ctx: click.Context, database_url: str, schema: str | None, *, as_json: bool) -> None:
    """List what is missing or differs.

    Exits 1 if anything does.
    """
    with _transaction(database_url, existing=True) as connection:
        differences = find_differences(connection, schema=schema)
    if as_json:
        found = [{"table": d.table, "what": d.what} for d in differences]
        print_json({"database": shown_url(database_url), "ok": not found, "differences": found})
    elif differences:
        print_rows(("table", "difference"), [(d.table, d.what) for d in differences])
        click.echo("`outbox-saga db upgrade` makes what is missing.", err=True)
    else:
        click.echo("no difference", err=True)
    ctx.exit(1 if differences else 0)


@db.command()
@click.option(
    "--dialect",
    type=click.Choice(("postgresql", "mariadb", "mysql", "sqlite")),
    help="[default: that of --database-url]",
)
@click.option("--database-url", "-d", envvar="OUTBOX_SAGA_DATABASE_URL", metavar="URL")
@schema_option
@click.option("--start", default="base", show_default=True, help="The revision it starts from.")
@click.option("--revision", default="head", show_default=True, help="How far.")
@lock_timeout_option
def sql(
    *,
    dialect: str | None,
    database_url: str | None,
    schema: str | None,
    start: str,
    revision: str,
    lock_timeout: float,
) -> None:
    """Write the SQL of an upgrade.

    For people who run SQL themselves; it connects to nothing.
    """
    if dialect is not None:
        refuse_typed("database_url", why="--dialect says which SQL it is")
    if dialect is None:
        if database_url is None:
            raise click.UsageError("pass --dialect, or --database-url to take it from")
        dialect = sync_url(database_url).get_backend_name()
    written = write_sql(
        dialect, schema=schema, revision=revision, start=start, lock_timeout=lock_timeout
    )
    click.echo(written, nl=False)


@db.command()
@database_url_option
@schema_option
@click.option("--revision", default="base", show_default=True, help="How far back.")
@click.option("--force", is_flag=True, help="Lose unpublished messages and unfinished sagas.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@lock_timeout_option
@json_option
def downgrade(
    database_url: str,
    schema: str | None,
    revision: str,
    lock_timeout: float,
    *,
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Take our tables away again.

    Refused while they hold unpublished messages or unfinished sagas. Stop the service first.
    """
    if not yes:
        where = shown_url(database_url)
        click.confirm(f"Take our tables in {where} back to {revision}?", abort=True, err=True)
    with _transaction(database_url, existing=True) as connection:
        before = current_revision(connection, schema=schema)
        take_away(
            connection, schema=schema, revision=revision, force=force, lock_timeout=lock_timeout
        )
        after = current_revision(connection, schema=schema)
    _print_change(database_url, before, after, as_json=as_json)


def _print_change(
    database_url: str, before: str | None, after: str | None, *, as_json: bool
) -> None:
    where = shown_url(database_url)
    if as_json:
        print_json({"database": where, "before": before, "after": after})
        return
    print_rows(("database", "before", "after"), [(where, before or "none", after or "none")])


@contextmanager
def _transaction(database_url: str, *, existing: bool = False) -> Iterator[sa.Connection]:
    """One transaction, committed at the end of the block."""
    url = sync_url(database_url)
    if existing and url.get_backend_name() == "sqlite":
        refuse_missing_file(url.database)
    # a pooler in transaction mode will do: all is one transaction, and so are its locks
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=connect_args(database_url))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()
