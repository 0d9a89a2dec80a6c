"""The root of the command line: quick help, and modules that load when their command runs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from outbox_saga_relay.cli import COMMANDS, main

HELP = """
import sys
from outbox_saga_relay.cli import main
main({arguments}, prog_name="outbox-saga", standalone_mode=False)
slow = ("sqlalchemy", "alembic", "pydantic", "outbox_saga.", "rich", "nats")
print([m for m in sys.modules if m.startswith(slow)])
"""


def test_help_names_every_command_and_imports_none_of_them() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HELP.format(arguments=["--help"])],
        capture_output=True,
        text=True,
        check=True,
    )

    *shown, imported = ran.stdout.splitlines()
    assert imported == "[]"
    assert [name for name in COMMANDS if not any(name in line.split() for line in shown)] == []


def test_the_version_is_that_of_the_installed_package() -> None:
    asked = CliRunner().invoke(main, ["--version"])

    assert asked.output == f"outbox-saga, version {version('outbox-saga')}\n"


def test_python_dash_m_is_the_same_program() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "outbox_saga_relay", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )

    asked = CliRunner().invoke(main, ["--help"], prog_name="outbox-saga")
    assert ran.stdout.split() == asked.output.split()  # lines are as wide as the terminal


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_names_can_be_loaded(name: str) -> None:
    assert COMMANDS[name].load().name == name
