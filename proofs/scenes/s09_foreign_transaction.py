"""9: a writing transaction in another database of the cluster stays open for five minutes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa

from proofs.peril.ear import ear
from proofs.peril.load import load
from proofs.registry import Outcome, say
from proofs.scenes.world import World, told, world

FULL = 300.0
SECONDS = float(os.environ.get("OUTBOX_SAGA_PROOF_SECONDS", FULL))
LIMIT = 1.0  # second
PAUSE = 0.1  # seconds between two transactions of one to ten messages: a light load
PARTS = 5  # of the time, each shown by itself, so that one sees whether it grows


def show() -> Outcome:
    """Lag from the return of the commit to the broker, over the whole time."""
    with world() as on:
        with ear(on.nats.url) as heard, on.relay(), foreign(on) as is_open:
            began = time.monotonic()
            with load(on, "9", waits=lambda _: False, pause=PAUSE) as writing:
                while time.monotonic() < began + SECONDS:
                    time.sleep(SECONDS / PARTS)
                    say(f"  {time.monotonic() - began:.0f} s, {len(writing.committed)} messages")
            held = is_open()
            lasted = time.monotonic() - began
            on.quiesce()
        violations, counts = on.check()
    lags = {
        id_: max(0.0, heard.first[id_] - at)
        for id_, at in writing.committed.items()
        if id_ in heard.first
    }
    p99 = quantile(lags, 99)
    good = not violations and held and lasted >= FULL and p99 < LIMIT
    return Outcome(
        good and len(lags) == len(writing.committed),
        {
            "seconds it was open": round(lasted, 1),
            "was still open in the end": held,
            "messages": len(lags),
            "lag ms": {
                "p50": round(statistics.median(lags.values()) * 1000, 1),
                "p99": round(p99 * 1000, 1),
                "most": round(max(lags.values()) * 1000, 1),
            },
            "p99 of each part of the time, ms": [
                round(quantile(part, 99) * 1000, 1) for part in parts_of(lags, writing.committed)
            ],
            **counts,
            "first violations": told(violations),
        },
    )


@contextmanager
def foreign(on: World) -> Iterator[Callable[[], bool]]:
    """A transaction that has written, elsewhere in the cluster; says whether it is still open."""
    url = on.database.url.set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE elsewhere")
    admin.dispose()
    engine = sa.create_engine(url.set(database="elsewhere"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE note (n integer)")
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO note VALUES (1)")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()

        def is_open() -> bool:
            asked = sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid "
                "AND backend_xid IS NOT NULL AND state = 'idle in transaction'"
            )
            with on.database.engine.connect() as eyes:
                return bool(eyes.execute(asked, {"pid": pid}).scalar_one())

        assert is_open()
        yield is_open
        connection.commit()
    engine.dispose()


def quantile(lags: Mapping[str, float], percent: int) -> float:
    """Of so many percent."""
    return statistics.quantiles(lags.values(), n=100)[percent - 1]


def parts_of(lags: Mapping[str, float], at: Mapping[str, float]) -> list[dict[str, float]]:
    """The lags by the time of the commit."""
    first, last = min(at.values()), max(at.values())
    found: list[dict[str, float]] = [{} for _ in range(PARTS)]
    for id_, lag in lags.items():
        part = int((at[id_] - first) / (last - first + 1e-9) * PARTS)
        found[min(part, PARTS - 1)][id_] = lag
    return found
