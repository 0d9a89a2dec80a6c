"""The web applications that start sagas do what their READMEs say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox_saga.tables import tables_in
from outbox_saga_migrations import upgrade
from tests.examples.serving import ask, refused, serving, until

OVER = ("completed", "compensated", "stuck")


def prepared(database_url: str) -> sa.Engine:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        upgrade(connection)
    return engine


def sagas(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(tables_in(None).saga)) or 0


@pytest.mark.databases("sqlite", "postgres18")
def test_a_booking_and_its_saga_are_there_together_or_not_at_all(
    database_url: str, tmp_path: Path
) -> None:
    engine = prepared(database_url)
    env = {"BOOKINGS_DATABASE": database_url}
    words = ("uvicorn", "bookings:app", "--port", "0")
    with serving("fastapi_sagas", tmp_path, env, *words) as (address, _):
        ends = []
        for number, guest in enumerate(("ada", "grace", "mary", "joan"), 1):
            started = ask(f"{address}/bookings", {"guest": guest})
            assert started["booking"] == number
            where = f"{address}/sagas/{started['saga']}"
            seen = until(lambda at=where: ask(at), lambda told: told["state"] in OVER)  # type: ignore[misc]
            ends.append((seen["state"], seen["reason"]))
        assert ends == [("completed", None)] * 3 + [("compensated", "take_seat: no seat is left")]
        assert refused(f"{address}/bookings", {"guest": "ada"}) == 409
        assert sagas(engine) == 4
        states = [told["state"] for told in ask(f"{address}/bookings")]
    assert states == ["confirmed"] * 3 + ["asked for"]


@pytest.mark.databases("sqlite", "postgres18")
def test_a_parcel_is_sent_by_a_saga_of_plain_functions(database_url: str, tmp_path: Path) -> None:
    engine = prepared(database_url)
    env = {"PARCELS_DATABASE": database_url}
    words = ("flask", "--app", "parcels", "run", "--port", "0")
    with serving("flask_sagas", tmp_path, env, *words) as (address, _):
        sent = ask(f"{address}/parcels", {"address": "Lovelace Road 1"})
        stays = ask(f"{address}/parcels", {"address": " "})
        beside = subprocess.Popen(
            [sys.executable, "-m", "outbox_saga_relay", "run", "parcels:service"],
            cwd=tmp_path,
            env={**os.environ, **env},
            stderr=subprocess.DEVNULL,
        )
        try:
            ends = [
                until(
                    lambda id_=started["saga"]: ask(f"{address}/sagas/{id_}"),  # type: ignore[misc]
                    lambda told: told["state"] in OVER,
                )
                for started in (sent, stays)
            ]
        finally:
            beside.terminate()
            beside.wait(30)
        assert ends == [
            {"state": "completed", "reason": None},
            {"state": "compensated", "reason": "print_label: there is no address"},
        ]
        found = ask(f"{address}/parcels")
    assert [told["state"] for told in found] == ["sent", "packed"]
    assert sagas(engine) == 2
