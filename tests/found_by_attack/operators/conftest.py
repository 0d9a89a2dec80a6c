"""Shares the fixture `house`."""

from __future__ import annotations

from tests.relay.fixtures import house, prepared_houses, pytest_generate_tests

__all__ = ["house", "prepared_houses", "pytest_generate_tests"]
