"""SQLite: each check speaks of a file opened or placed wrongly, and is silent otherwise."""

from __future__ import annotations

import sqlite3.dbapi2
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.database import Database
from outbox_saga_migrations import upgrade
from outbox_saga_relay.doctor import Finding, examine_database, sqlite
from tests.doctor.examined import of, only

Spoil = Callable[..., None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "shop.db"
    engine = sa.create_engine(f"sqlite:///{made}")
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()
    return made


@pytest.fixture
def opened(file: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{file}")
    yield made
    made.engine.dispose()


def found(opened: Database, check: str) -> list[Finding]:
    return of(examine_database(opened), check)


def on_every_connection(opened: Database, pragma: str) -> None:
    """What a service's own code does to the connections of its engine."""

    @event.listens_for(opened.engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA {pragma}")


def test_of_a_good_file_every_check_is_made_and_none_has_anything_to_say(
    opened: Database,
) -> None:
    report = examine_database(opened)

    assert report.findings == ()
    assert len(report.checks) == 14


def test_examining_a_file_that_is_not_there_does_not_make_it(tmp_path: Path) -> None:
    missing = tmp_path / "no.db"
    database = Database(f"sqlite:///{missing}")

    report = examine_database(database)

    only(of(report, "database.reachable"), "error", "there is no file")
    assert {f.level for f in report.findings} == {"error", "unknown"}
    assert not missing.exists()


def test_a_journal_that_locks_readers_out_is_named(opened: Database) -> None:
    on_every_connection(opened, "journal_mode = DELETE")

    only(found(opened, "sqlite.journal"), "error", "delete")


@pytest.mark.parametrize("level", ["OFF", "NORMAL"])
def test_commits_that_do_not_wait_for_the_disk_are_named(level: str, opened: Database) -> None:
    on_every_connection(opened, f"synchronous = {level}")

    only(found(opened, "sqlite.synchronous"), "error", level)


def test_writers_that_do_not_wait_for_each_other_are_named(opened: Database) -> None:
    on_every_connection(opened, "busy_timeout = 50")

    only(found(opened, "sqlite.busy_timeout"), "warning", "50 ms")


def test_a_library_that_is_too_old_is_named(
    opened: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3.dbapi2, "sqlite_version_info", (3, 31, 1))

    only(found(opened, "sqlite.version"), "error", "3.31.1")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "smb3"])
def test_a_file_on_a_network_is_named(
    kind: str, opened: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(sqlite, "MOUNTS", mounts)

    only(found(opened, "sqlite.place"), "error", kind)


def test_where_nobody_says_what_is_mounted_the_place_is_unknown(
    opened: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "MOUNTS", tmp_path / "nowhere")

    only(found(opened, "sqlite.place"), "unknown", "does not say")


MOUNTED = """\
overlay / overlay rw 0 0
proc /proc proc rw 0 0
tmpfs /data tmpfs rw 0 0
host:/data /data nfs4 rw 0 0
/dev/sdb /data/fast ext4 rw 0 0
host:/b /with\\040space nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/var/shop.db", "overlay"),
        ("/data/shop.db", "nfs4"),  # mounted over what was there
        ("/data/fast/shop.db", "ext4"),
        ("/database/shop.db", "overlay"),
        ("/with space/shop.db", "nfs"),
    ],
)
def test_the_file_system_of_a_file_is_that_of_its_nearest_mount(file: str, kind: str) -> None:
    assert sqlite.file_system(Path(file), MOUNTED) == kind
