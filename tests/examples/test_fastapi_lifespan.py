"""The FastAPI example does what its README says, under uvicorn, until SIGTERM."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from outbox_saga.tables import tables_in
from outbox_saga_migrations import upgrade
from outbox_saga_relay.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_lifespan"
PATIENCE = 30.0


@contextmanager
def running(database_url: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The application as `uvicorn shop:app` starts it, and its address once it answers."""
    shutil.copy(EXAMPLE / "shop.py", folder)
    program = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "shop:app", "--port", "0"],
        cwd=folder,
        env={**os.environ, "SHOP_DATABASE": database_url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield _address(program), program
    finally:
        program.kill()
        program.communicate()


def _address(program: subprocess.Popen[str]) -> str:
    said = ""
    assert program.stderr is not None
    for line in program.stderr:
        said += line
        if found := re.search(r"running on (http://[0-9.:]+)", line):
            return found[1]
    raise AssertionError(said)


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


@pytest.mark.databases("sqlite", "postgres18")
def test_an_order_placed_by_http_is_confirmed_by_its_handler_and_sigterm_drains(
    database_url: str, tmp_path: Path
) -> None:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        upgrade(connection)
    with running(database_url, tmp_path) as (address, program):
        placed = ask(f"{address}/orders", {"sku": "tea"})
        assert placed == {"id": 1}
        deadline = time.monotonic() + PATIENCE
        while not (found := ask(f"{address}/orders"))[0]["confirmed"]:
            assert time.monotonic() < deadline, "never confirmed"
        assert found == [{"id": 1, "sku": "tea", "confirmed": True}]
        ask(f"{address}/orders", {"sku": "coffee"})
        program.send_signal(signal.SIGTERM)
        said = program.communicate(timeout=PATIENCE)[1]
        assert "Application shutdown complete" in said
    tables = tables_in(None)
    with engine.connect() as connection:
        owners = set(connection.scalars(sa.select(tables.partition_lease.c.owner)))
        waiting = connection.execute(sa.select(tables.inbox_waiting)).all()
    assert (owners, waiting) == ({None}, [])
    engine.dispose()


def test_the_readme_of_the_example_shows_commands_that_exist() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    assert "uvicorn shop:app" in readme
    for line in re.findall(r"outbox-saga [a-z]+(?: [a-z]+)?", readme):
        assert CliRunner().invoke(main, [*line.split()[1:], "--help"]).exit_code == 0, line
