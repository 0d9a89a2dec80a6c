"""The examples of sagas do what their READMEs say, command by command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox_saga_migrations import upgrade

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 60.0


class Example:
    """One of them, copied into a folder of its own, at a database that has our tables."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.folder = Path(shutil.copytree(EXAMPLES / name, folder / name))
        self.url = url
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            upgrade(connection)

    def run(self, command: str) -> list[str]:
        """What it printed, and how it ended."""
        words = shlex.split(command)
        assert words[0] == "python"
        env = {**os.environ, "USERS_DATABASE": self.url, "ORDERS_DATABASE": self.url}
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        lines = [line.strip() for line in done.stdout.splitlines()]
        assert lines, done.stderr
        assert (done.returncode == 0) == (lines[-1] == "COMPLETED"), done.stderr
        return lines

    def letters(self) -> list[str]:
        """The texts that were sent."""
        return sorted(path.read_text().splitlines()[-1] for path in self.folder.glob("mail/*"))


def commands(name: str) -> dict[str, str]:
    """The commands of a README, with what stands behind each."""
    readme = (EXAMPLES / name / "README.md").read_text()
    found = re.findall(r"^(python \S+\.py.*?)\s+# (.*)$", readme, re.MULTILINE)
    return dict(found)


def said(lines: list[str]) -> str:
    return ", ".join(line for line in lines if line.startswith(("STEP_", "COMP")))


@pytest.mark.databases("sqlite")
def test_a_user_is_there_with_a_welcome_or_not_at_all(database_url: str, tmp_path: Path) -> None:
    example = Example("user_onboarding", tmp_path, database_url)
    readme = (EXAMPLES / "user_onboarding" / "README.md").read_text()
    lines = re.findall(r"^(python .*?)\s+# … (.*)$", readme, re.MULTILINE)
    assert len(lines) == 3
    for command, told in lines:
        heard = said(example.run(command))
        for part in told.split(", "):
            assert part in heard, command
    assert example.letters() == ["Welcome, Ada Lovelace!"]
    with sa.create_engine(database_url, poolclass=sa.NullPool).connect() as connection:
        found = connection.execute(sa.text("SELECT name, email FROM users")).all()
    assert [tuple(row) for row in found] == [("Ada Lovelace", "ada@example.com")]


@pytest.mark.databases("sqlite")
def test_an_order_is_whole_or_nothing_of_it_is_left(database_url: str, tmp_path: Path) -> None:
    example = Example("order_processing", tmp_path, database_url)
    told = commands("order_processing")
    assert len(told) == 6
    for command, what in told.items():
        lines = example.run(command)
        if what == "… COMPLETED":
            assert lines[-1] == "COMPLETED"
            continue
        step, _, rest = what.partition(": ")
        failed = next(line for line in lines if line.startswith("STEP_FAILED"))
        assert failed.startswith(f"STEP_FAILED {step} "), command
        assert rest.partition(";")[0] in failed, command
        assert lines[-1].startswith("COMPENSATED"), command
    # tea x 2 and a teapot are sold, and nothing else has changed
    with sa.create_engine(database_url, poolclass=sa.NullPool).connect() as connection:
        stock = connection.execute(sa.text("SELECT stock FROM products ORDER BY id")).scalars()
        assert list(stock) == [8, 5, 1, 1]
        reserved = connection.execute(
            sa.text("SELECT product_id, quantity FROM reservations ORDER BY id")
        ).all()
        assert [tuple(row) for row in reserved] == [(1, 2), (3, 1)]
        orders = connection.execute(sa.text("SELECT cents, state FROM orders ORDER BY id")).all()
        assert [tuple(row) for row in orders] == [(5800, "created"), (450, "cancelled")]
    with closing(sqlite3.connect(example.folder / "psp.db")) as ledger:
        moved = ledger.execute("SELECT cents FROM movement ORDER BY rowid").fetchall()
    assert moved == [(5800,), (450,), (-450,)]
    assert example.letters() == ["Your order 1 is on its way."]


@pytest.mark.databases("postgres18")
def test_an_order_is_undone_on_another_database_too(database_url: str, tmp_path: Path) -> None:
    example = Example("order_processing", tmp_path, database_url)
    assert "declined" in said(example.run("python order_saga.py ada ada@example.com 4x1"))
