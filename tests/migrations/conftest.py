"""An engine for the test's database, and another database made from the definitions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox_saga_migrations import scripts
from tests.fixtures.databases import Database


@pytest.fixture
def engine_for() -> Iterator[Callable[[str], sa.Engine]]:
    """Engines without a pool: closed means closed, and what is left open is found."""
    engines: list[sa.Engine] = []

    def make(url: str) -> sa.Engine:
        engines.append(sa.create_engine(url, poolclass=sa.NullPool))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(database: Database, engine_for: Callable[[str], sa.Engine]) -> sa.Engine:
    return engine_for(database.url)


@pytest.fixture
def defined(
    database: Database,
    fresh_database: Callable[[str], Database],
    engine_for: Callable[[str], sa.Engine],
) -> sa.Engine:
    """A second, empty database of the same kind, for what the definitions make by themselves."""
    return engine_for(fresh_database(database.name).url)


@pytest.fixture
def two_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """From the call on, this process knows a second revision, which makes one more table."""
    folder = tmp_path / "scripts"

    def learn() -> None:
        shutil.copytree(scripts.SCRIPT_LOCATION / "versions", folder / "versions")
        (folder / "versions" / "9001_later.py").write_text(SECOND)
        monkeypatch.setattr(scripts, "SCRIPT_LOCATION", folder)
        scripts.script_directory.cache_clear()

    yield learn
    scripts.script_directory.cache_clear()


SECOND = """
import sqlalchemy as sa

revision, down_revision = "9001", "0006"


def upgrade(steps):
    steps.create_table("outbox_saga_later", sa.Column("id", sa.Integer, primary_key=True))


def downgrade(steps):
    steps.drop_table("outbox_saga_later")
"""
