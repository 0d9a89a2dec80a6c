"""What one claim costs, with few instances in the table and with very many.

Flat means: with 100,000 instances that wait and 10,000 that are due, one claim of as many
instances takes at most 1.5 times the time (median) and at most 1.5 times the pages (`shared hit` +
`shared read` of EXPLAIN ANALYZE, BUFFERS of the statements that the claim really sends) that it
takes with a hundredth of both; so does the look that asks whether anything is due. Told beside it,
and no part of the bar: the same with ten due instances and nothing else, where the whole table is
one page and no index is used. Each claim is rolled back, so that the next one finds the same.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from benchmarks.databases import Place
from benchmarks.saga_steps import IN_FLIGHT, Data, Ground, definition
from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.queries import leases
from outbox_saga.queries.clock import DATABASE_CLOCK
from outbox_saga.queries.leases import Known
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork
from proofs.registry import say

WAITING, DUE, HUNDREDTH = 100_000, 10_000, 100
LIMITS = (1, IN_FLIGHT)
FLAT = 1.5
ROUNDS, REPEATS = 5, 60
LEASE = 30.0

SIZES = (("ten", 0, 10), ("few", WAITING // HUNDREDTH, DUE // HUNDREDTH), ("many", WAITING, DUE))

Verb = Callable[[sa.Connection], object]


def claim_costs(place: Place) -> tuple[bool, dict[str, Any]]:
    """Few and many, in turn; each round fills the table anew."""
    verbs: dict[str, Verb] = {"a look whether anything is due": _look}
    verbs |= {f"a claim of {n}": _claim_of(n) for n in LIMITS}
    times: dict[str, dict[str, list[float]]] = {name: {} for name, _, _ in SIZES}
    pages: dict[str, dict[str, list[int]]] = {name: {} for name, _, _ in SIZES}
    database = Database(place.url, pool_size=1)
    for number in range(ROUNDS):
        for name, waiting, due in SIZES:
            _fill(place, database, waiting, due)
            for verb, call in verbs.items():
                times[name].setdefault(verb, []).append(_median_ms(database, call))
                pages[name].setdefault(verb, []).append(_pages(database, call))
        say(f"claims: round {number + 1} of {ROUNDS}")
    database.dispose()
    return _judged(times, pages)


def _judged(
    times: dict[str, dict[str, list[float]]], pages: dict[str, dict[str, list[int]]]
) -> tuple[bool, dict[str, Any]]:
    measured: dict[str, Any] = {"waiting": WAITING, "due": DUE, "bar": FLAT}
    good = True
    for verb in times["few"]:
        by_time = statistics.median(
            many / few for many, few in zip(times["many"][verb], times["few"][verb], strict=True)
        )
        few, many = (statistics.median(pages[name][verb]) for name in ("few", "many"))
        good &= by_time <= FLAT and many <= FLAT * few
        measured[verb] = {
            "ms": {name: round(statistics.median(times[name][verb]), 3) for name in times},
            "times_as_long": round(by_time, 2),
            "pages": {name: statistics.median(pages[name][verb]) for name in pages},
            "times_as_many_pages": round(many / few, 2),
        }
    return good, measured


def _fill(place: Place, database: Database, waiting: int, due: int) -> None:
    """So many that are due now, one after another, and so many that are not for hours."""
    Ground(place.url, due).empty()
    saga, tables = definition("async"), tables_in()
    with database.begin() as connection:
        saga.start(UnitOfWork(connection), Data(account=0))
    table = tables.saga.name
    taken = ", ".join(
        c.name for c in tables.saga.columns if c.name not in ("id", "due_at", "correlation_id")
    )
    copy = (
        f"INSERT INTO {table} (id, correlation_id, due_at, {taken}) "
        f"SELECT gen_random_uuid(), gen_random_uuid()::text, %s, {taken} "
        f"FROM {table}, generate_series(1, %s) AS n WHERE n > 0"
    )
    with database.begin() as connection:
        # the first one, which all are copies of, is the last to be due
        connection.exec_driver_sql(f"UPDATE {table} SET due_at = now() + interval '1 day'")
        later = copy.replace("%s", "now() + n * interval '1 second' + interval '1 hour'", 1)
        one = f" AND {table}.id = (SELECT id FROM {table} LIMIT 1)"
        if waiting:
            connection.exec_driver_sql(later + one, (waiting,))
        ago = copy.replace("%s", "now() - n * interval '1 millisecond'", 1)
        connection.exec_driver_sql(ago + one, (due,))
    with database.engine.connect() as connection:
        automatic = connection.execution_options(isolation_level="AUTOCOMMIT")
        automatic.exec_driver_sql(f"VACUUM ANALYZE {table}")


def _known() -> Known:
    saga = definition("async").check()
    return Known([saga.name], [saga.shape])


def _look(connection: sa.Connection) -> object:
    found = leases.any_due(connection, tables_in(), DATABASE_CLOCK, new_id(), _known())
    assert found
    return found


def _claim_of(count: int) -> Verb:
    def claim(connection: sa.Connection) -> object:
        _, instances = leases.claim(
            connection, tables_in(), DATABASE_CLOCK, new_id(), LEASE, _known(), count
        )
        assert len(instances) == count
        return instances

    return claim


def _median_ms(database: Database, verb: Verb) -> float:
    seconds = []
    with database.engine.connect() as connection:
        for _ in range(REPEATS):
            with connection.begin() as transaction:
                connection.exec_driver_sql("SELECT 1")  # it has begun
                began = time.perf_counter()
                verb(connection)
                seconds.append(time.perf_counter() - began)
                transaction.rollback()
    return statistics.median(seconds) * 1000


def _pages(database: Database, verb: Verb) -> int:
    """Of all statements that it sends, as the server counts them when it runs them once more."""
    found: list[int] = []

    def explain(
        connection: sa.Connection, _: Any, statement: str, parameters: Any, *__: object
    ) -> None:
        asked = connection.connection.cursor()
        asked.execute("SAVEPOINT explained")
        asked.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        plan = asked.fetchone()[0]  # type: ignore[index]  # EXPLAIN answers
        asked.execute("ROLLBACK TO explained")
        plan = json.loads(plan) if isinstance(plan, str) else plan
        root = plan[0]["Plan"]
        found.append(root["Shared Hit Blocks"] + root["Shared Read Blocks"])

    event.listen(database.engine, "before_cursor_execute", explain)
    try:
        with database.engine.connect() as connection, connection.begin() as transaction:
            verb(connection)
            transaction.rollback()
    finally:
        event.remove(database.engine, "before_cursor_execute", explain)
    return sum(found)
