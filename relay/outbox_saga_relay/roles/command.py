"""`outbox-saga db roles`: the SQL of the roles, for the person who may run it."""

from __future__ import annotations

import click

from outbox_saga_relay.database_options import schema_option
from outbox_saga_relay.typed import refuse_typed


@click.command()
@click.option(
    "--dialect",
    type=click.Choice(("postgresql", "mariadb", "mysql")),
    help="[default: that of --database-url]",
)
@click.option("--database-url", "-d", envvar="OUTBOX_SAGA_DATABASE_URL", metavar="URL")
@schema_option
@click.option(
    "--prefix",
    default="outbox_saga",
    show_default=True,
    metavar="NAME",
    help="Of the roles' names. Roles belong to the whole server: give each service its own.",
)
def roles(
    *, dialect: str | None, database_url: str | None, schema: str | None, prefix: str
) -> None:
    """Write the SQL of least-privilege roles for our programs.

    It connects to nothing: run the SQL as the owner of the tables, after each upgrade.
    """
    from outbox_saga.database_urls import sync_url
    from outbox_saga_relay.roles import roles_sql

    if dialect is not None:
        refuse_typed("database_url", why="--dialect says which SQL it is")
    if dialect is None:
        if database_url is None:
            raise click.UsageError("pass --dialect, or --database-url to take it from")
        dialect = sync_url(database_url).get_backend_name()
    click.echo(roles_sql(dialect, schema=schema, prefix=prefix), nl=False)
