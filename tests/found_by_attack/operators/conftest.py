"""Shares the fixtures `house` and `command`."""

from __future__ import annotations

from tests.cli.conftest import command
from tests.relay.fixtures import house, prepared_houses, pytest_generate_tests

__all__ = ["command", "house", "prepared_houses", "pytest_generate_tests"]
