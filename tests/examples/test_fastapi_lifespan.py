"""The FastAPI example does what its README says, under uvicorn, until SIGTERM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from outbox_saga.tables import tables_in
from outbox_saga_migrations import upgrade
from outbox_saga_relay.cli import main
from tests.examples.serving import EXAMPLES, ask, serving, until

EXAMPLE = EXAMPLES / "fastapi_lifespan"


@pytest.mark.databases("sqlite", "postgres18")
def test_an_order_placed_by_http_is_confirmed_by_its_handler_and_sigterm_drains(
    database_url: str, tmp_path: Path
) -> None:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        upgrade(connection)
    words = ("uvicorn", "shop:app", "--port", "0")
    env = {"SHOP_DATABASE": database_url}
    with serving("fastapi_lifespan", tmp_path, env, *words) as (address, program):
        placed = ask(f"{address}/orders", {"sku": "tea"})
        assert placed == {"id": 1}
        found = until(lambda: ask(f"{address}/orders"), lambda told: told[0]["confirmed"])
        assert found == [{"id": 1, "sku": "tea", "confirmed": True}]
        ask(f"{address}/orders", {"sku": "coffee"})
        assert "Application shutdown complete" in program.terminate()
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
