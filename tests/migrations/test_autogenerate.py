"""A service's own Alembic: `revision --autogenerate` says nothing about our tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import outbox_saga_migrations
from outbox_saga_migrations import autogenerate, check, current, upgrade
from tests.fixtures.databases import Database
from tests.migrations.catalog import table_names

HAS_PLUGINS = tuple(int(part) for part in version("alembic").split(".")[:2]) >= (1, 18)
needs_plugins = pytest.mark.skipif(not HAS_PLUGINS, reason="Alembic has plugins from 1.18 on")

ENV = """
import sqlalchemy as sa
from alembic import context

metadata = sa.MetaData()
sa.Table("orders", metadata, sa.Column("id", sa.Integer, primary_key=True))

engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=sa.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, {options})
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""

MAKO = """
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
def upgrade():
    ${upgrades if upgrades else "pass"}
def downgrade():
    ${downgrades if downgrades else "pass"}
"""

Drafted = Callable[..., str]


def service(folder: Path, url: str, options: str = "") -> Config:
    """A service's Alembic environment, as `alembic init` and a little editing leave it."""
    folder.mkdir()
    (folder / "versions").mkdir()
    (folder / "env.py").write_text(ENV.format(options=options))
    (folder / "script.py.mako").write_text(MAKO)
    config = Config(attributes={})
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", url)
    return config


@pytest.fixture
def drafted(tmp_path: Path, database: Database) -> Drafted:
    """What `alembic revision --autogenerate` writes for a service with these options."""

    def draft(options: str = "") -> str:
        config = service(tmp_path / "alembic", database.url, options)
        command.revision(config, autogenerate=True)
        (written,) = (tmp_path / "alembic" / "versions").glob("*.py")
        return written.read_text()

    return draft


@needs_plugins
def test_with_no_setting_it_proposes_nothing_about_our_tables(
    engine: sa.Engine, drafted: Drafted
) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.exec_driver_sql("create table outdated (id integer primary key)")

    written = drafted()

    assert "outbox_saga" not in written
    assert "op.create_table('orders'" in written
    assert "op.drop_table('outdated')" in written


@needs_plugins
def test_without_the_plugin_it_would_propose_to_drop_them(
    engine: sa.Engine, drafted: Drafted
) -> None:
    with engine.begin() as connection:
        upgrade(connection)

    written = drafted(
        'autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.outbox_saga"]'
    )

    assert "op.drop_table('outbox_saga_outbox')" in written


@needs_plugins
@pytest.mark.databases("postgres18", "postgres15")
def test_tables_in_a_schema_of_their_own_are_left_alone_too(
    engine: sa.Engine, drafted: Drafted
) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        upgrade(connection, schema="messaging")

    assert "outbox_saga" not in drafted("include_schemas=True")


@needs_plugins
@pytest.mark.databases("mariadb")
def test_on_mariadb_tables_in_another_database_are_left_alone_too(
    engine: sa.Engine, fresh_database: Callable[[str], Database], drafted: Drafted
) -> None:
    other = str(sa.make_url(fresh_database("mariadb").url).database)
    with engine.begin() as connection:
        upgrade(connection)
        upgrade(connection, schema=other)

    here = (
        f"include_name=lambda name, type_, parents: type_ != 'schema' or name in (None, '{other}')"
    )
    assert "outbox_saga" not in drafted(f"include_schemas=True, {here}")


@needs_plugins
@pytest.mark.databases("postgres18", "sqlite")
def test_a_table_with_our_prefix_that_the_service_names_itself_is_the_services(
    engine: sa.Engine,
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    mine = sa.MetaData()
    sa.Table("outbox_saga_report", mine, sa.Column("id", sa.Integer, primary_key=True))
    with engine.begin() as connection:
        upgrade(connection)
        connection.exec_driver_sql(
            "create table outbox_saga_report (id integer not null primary key, old integer)"
        )
        connection.exec_driver_sql("create index old_index on outbox_saga_report (old)")

        found = compare_metadata(MigrationContext.configure(connection), mine)

    assert {change[0] for change in found} == {"remove_column", "remove_index"}


def test_include_name_does_the_same_for_an_older_alembic(
    engine: sa.Engine, drafted: Drafted
) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    ours_left_out = (
        'autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.outbox_saga"],'
    )
    name = "__import__('outbox_saga_migrations.autogenerate').autogenerate.include_name"

    written = drafted(f"{ours_left_out if HAS_PLUGINS else ''} include_name={name}")

    assert "outbox_saga" not in written
    assert "op.create_table('orders'" in written


def test_the_entry_point_can_be_iterated_as_alembic_1_18_does() -> None:
    taken_by_1_18: Any = autogenerate
    assert list(taken_by_1_18) == [autogenerate]


def test_every_alembic_command_of_a_service_loads_us_without_our_library() -> None:
    program = (
        "import sys, alembic.config, alembic.command; "
        "print([m for m in sys.modules if m.startswith(('outbox_saga.', 'pydantic'))])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


REVISION = """
import outbox_saga_migrations
from alembic import op
import sqlalchemy as sa
revision, down_revision = "a1", None
def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))
    outbox_saga_migrations.upgrade(op.get_bind())
    op.add_column("orders", sa.Column("note", sa.Text))
def downgrade():
    outbox_saga_migrations.downgrade(op.get_bind())
    op.drop_table("orders")
"""


def test_a_services_own_revision_may_call_us_and_goes_on_afterwards(
    engine: sa.Engine, tmp_path: Path, database_url: str
) -> None:
    config = service(tmp_path / "alembic", database_url)
    (tmp_path / "alembic" / "versions" / "a1_tables.py").write_text(REVISION)

    command.upgrade(config, "head")

    with engine.begin() as connection:
        assert check(connection) == []
        columns = sa.inspect(connection).get_columns("orders")
        assert [column["name"] for column in columns] == ["id", "note"]
        marks = connection.exec_driver_sql("select version_num from alembic_version").scalars()
        assert marks.all() == ["a1"]

    command.downgrade(config, "base")

    with engine.begin() as connection:
        assert table_names(connection) == {"alembic_version"}


def test_our_folder_works_as_an_alembic_script_location(
    engine: sa.Engine, database_url: str
) -> None:
    config = Config()
    config.set_main_option("script_location", str(outbox_saga_migrations.SCRIPT_LOCATION))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", database_url)

    command.upgrade(config, "head")
    with engine.begin() as connection:
        assert check(connection) == []
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert current(connection) is None
