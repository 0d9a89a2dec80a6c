"""The write path's fixtures."""

from __future__ import annotations

from tests.write_path.conftest import (  # noqa: F401
    async_engine,
    prepared,
    pytest_generate_tests,
    shop,
)
