"""How every command is told which database, and which schema in it."""

from __future__ import annotations

import click


def _refuse_odd_name(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    # The rule of outbox_saga.tables, which is slow to import.
    if name is not None and not (name.isidentifier() and name.isascii()):
        raise click.BadParameter("use ASCII letters, digits and '_'")
    return name


database_url_option = click.option(
    "--database-url",
    "-d",
    envvar="OUTBOX_SAGA_DATABASE_URL",
    required=True,
    metavar="URL",
    show_envvar=True,
    help="The service's database, as in postgresql://user@host/name, with ?pooler=true through "
    "pgbouncer in transaction mode. A password is better put into the environment: everybody on "
    "this machine can read command lines.",
)

schema_option = click.option(
    "--schema",
    envvar="OUTBOX_SAGA_SCHEMA",
    default=None,
    callback=_refuse_odd_name,
    metavar="NAME",
    show_envvar=True,
    help="The schema of our tables. [default: the connection's own]",
)
