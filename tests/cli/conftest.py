"""Shares the fixture `house`, and runs commands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from click.testing import CliRunner, Result

from outbox_saga_relay.cli import main
from tests.relay import fixtures
from tests.relay.fixtures import house, prepared_houses

__all__ = ["house", "prepared_houses"]

Command = Callable[..., Awaitable[Result]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    fixtures.pytest_generate_tests(metafunc)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `outbox-saga` with these arguments, in a thread of this process."""
    for name in ("DATABASE_URL", "SCHEMA", "OPERATOR", "INBOX_WINDOW", "ARCHIVE_WINDOW"):
        monkeypatch.delenv(f"OUTBOX_SAGA_{name}", raising=False)
    monkeypatch.setenv("LOGNAME", "grace")

    async def run(*arguments: object) -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, main, [str(a) for a in arguments], prog_name="outbox-saga"
        )

    return run
