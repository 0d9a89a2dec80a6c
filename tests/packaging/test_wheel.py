"""What reaches a user: the wheel, installed where nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.packaging.wheel import EVERY_NAME, NOT_LOADED, PAID_ANYWAY, Installation, build

pytestmark = pytest.mark.packaging
OURS = {"outbox_saga", "outbox_saga_relay", "outbox_saga_migrations"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that OUTBOX_SAGA_TEST_WHEEL names, else one built now."""
    if given := os.environ.get("OUTBOX_SAGA_TEST_WHEEL"):
        return Path(given).resolve(strict=True)
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("empty") / "env", wheel)


def test_the_wheel_installs_our_three_packages_and_no_other(installed: Installation) -> None:
    top = {file.partition("/")[0] for file in installed.files() if file.endswith(".py")}

    assert top == OURS


def test_each_package_says_that_it_is_typed(installed: Installation) -> None:
    assert {f"{package}/py.typed" for package in OURS} <= set(installed.files())


def test_the_migration_scripts_are_in_the_wheel(installed: Installation) -> None:
    scripts = [f for f in installed.files() if f.startswith("outbox_saga_migrations/versions/")]

    assert any(file.endswith(".py") for file in scripts)


def test_the_sql_of_the_roles_is_in_the_wheel(installed: Installation) -> None:
    written = installed.run(str(installed.script), "db", "roles", "--dialect", "mariadb")

    assert "GRANT SELECT" in written


def test_doctor_needs_no_client_of_a_broker_to_start(installed: Installation) -> None:
    listed = installed.run(str(installed.script), "doctor", "--list")

    assert "nats.losses" in listed
    assert "nats" not in installed.loaded("import outbox_saga_relay.doctor_command")


def test_nothing_of_the_checkout_but_the_packages_is_in_the_wheel(
    installed: Installation,
) -> None:
    others = {
        file
        for file in installed.files()
        if file.partition("/")[0] not in OURS and ".dist-info/" not in file
    }

    assert {Path(file).name for file in others} == {"outbox-saga"}  # the console script


def test_the_console_script_and_the_module_run(installed: Installation) -> None:
    by_script = installed.run(str(installed.script), "--help")
    by_module = installed.run(str(installed.python), "-I", "-m", "outbox_saga_relay", "--help")

    assert "Usage: outbox-saga" in by_script
    assert by_module == by_script


def test_importing_the_library_loads_no_driver_no_client_and_no_program(
    installed: Installation,
) -> None:
    assert installed.loaded(EVERY_NAME) & set(NOT_LOADED) == set()


def test_importing_the_library_adds_less_than_half_to_what_it_stands_on(
    installed: Installation,
) -> None:
    paid_anyway, ours = installed.import_times(PAID_ANYWAY, "import outbox_saga")

    assert ours < 1.5 * paid_anyway
