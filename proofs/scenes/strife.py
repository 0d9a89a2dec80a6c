"""Eight writers that deadlock, fail to serialize, run out of patience for locks, and are ended.

All of it real: rows locked crosswise, units at SERIALIZABLE, `lock_timeout`, and somebody who
ends sessions. On PostgreSQL 18, and on one whose messages are Russian.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga import commit_outcome, retry_unit
from outbox_saga.errors import CommitUnknown
from outbox_saga.retries import Retry
from outbox_saga.testing.servers import Postgres15, Postgres18
from outbox_saga.testing.servers.process import LocalProcess
from outbox_saga.unit_of_work import UnitOfWork
from proofs.scenes.world import World, intended, told, world
from tests.write_path.shop import Said

WRITERS, UNITS, COUNTERS = 8, 40, 4
ATTEMPTS = 60
SEED = 20261128
EVERY = 0.05  # seconds between two sessions that are ended
Work = Callable[[UnitOfWork[Session]], None]
CODES = ("40001", "40P01", "55P03", "57P01")


def everywhere() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each server, and what it came to."""
    yield "strife, PostgreSQL 18", strife(Postgres18)
    yield "strife, a server that speaks Russian", strife(SpeaksRussian)


class SpeaksRussian(Postgres15):
    """PostgreSQL 15 with the Russian messages of Debian's package; the wheel of 18 has none."""

    @classmethod
    def local(cls, *, durable: bool) -> Any:
        """The usual one, in another environment: any locale but C heeds LANGUAGE."""
        place = super().local(durable=durable)
        assert isinstance(place, LocalProcess)
        usual = place.command
        place.environment = lambda: {"LANGUAGE": "ru"}  # type: ignore[method-assign]
        place.command = lambda: [*usual(), "-c", "lc_messages=C.UTF-8"]  # type: ignore[method-assign]
        return place


def strife(server: type[Postgres18 | Postgres15]) -> dict[str, Any]:
    """All writers to their end, the relay at work meanwhile."""
    with world(server, pool_size=WRITERS) as on:
        with on.database.begin() as connection:
            connection.exec_driver_sql("create table scene_counter (k int primary key, n int)")
            connection.exec_driver_sql(
                f"insert into scene_counter select k, 0 from generate_series(1, {COUNTERS}) k"
            )
            connection.exec_driver_sql("create table scene_effect (number int)")
        writers = Writers(on)
        writers.deadlock()
        over = threading.Event()
        with on.relay("--poll", "0.05"), ThreadPoolExecutor(WRITERS + 1) as threads:
            nemesis = threads.submit(ends_sessions, on, over)
            for done in [threads.submit(writers.write, n) for n in range(WRITERS)]:
                done.result()
            over.set()
            ended = nemesis.result()
            seconds = on.quiesce()
        violations, counts = on.check()
        wrong = writers.judged()
    return {
        "units": WRITERS * UNITS + 2,
        "errors by code": dict(writers.codes),
        "sessions ended": ended,
        "attempts": sum(writers.attempts.values()),
        "attempts of one unit at most": max(writers.attempts.values()),
        "unknown commits asked about": writers.asked,
        "a message of the server": writers.text,
        "seconds until at rest": seconds,
        **counts,
        "first violations": [*wrong, *told(violations)][:20],
    }


def ends_sessions(on: World, over: threading.Event) -> int:
    """One after the other, whoever it is, the relay's among them; how many."""
    chance = random.Random(SEED)
    ended = 0
    engine = sa.create_engine(on.url)
    with engine.connect() as connection:
        own = sa.text(
            "select pid from pg_stat_activity where datname = current_database() "
            "and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        while not over.wait(EVERY):
            pids = list(connection.scalars(own))
            if pids:
                connection.execute(
                    sa.text("select pg_terminate_backend(:pid)"), {"pid": chance.choice(pids)}
                )
                ended += 1
            connection.rollback()
    engine.dispose()
    return ended


class Writers:
    """Each runs its units to their end, and notes what the server answered."""

    def __init__(self, on: World) -> None:
        self._on = on
        self._look = sa.create_engine(on.url)
        self._lock = threading.Lock()
        self.attempts: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self.asked = 0
        self.text = ""
        event.listen(on.database.engine, "handle_error", self._note)

    def _note(self, context: Any) -> None:
        code = getattr(context.original_exception, "sqlstate", None) or "connection lost"
        with self._lock:
            self.codes[code] += 1
            if code == "40P01" and not self.text:
                self.text = str(context.original_exception).splitlines()[0][:100]

    def write(self, writer: int) -> None:
        """Its units, one after the other."""
        chance = random.Random(f"{SEED} {writer}")
        engine = self._on.database.engine
        for number in range(writer * UNITS, (writer + 1) * UNITS):
            serializable = chance.random() < 0.4
            first, second = chance.sample(range(1, COUNTERS + 1), 2)
            impatient = chance.random() < 0.3

            work = self._unit(number, (first, second), impatient=impatient)
            level = {"isolation_level": "SERIALIZABLE"} if serializable else {}
            retry_unit(
                sessionmaker(engine.execution_options(**level)),
                work,
                retry=Retry(max_attempts=ATTEMPTS, initial=0.005, max_delay=0.2),
                resolve=self._resolve,
            )

    def deadlock(self) -> None:
        """Two units that certainly do: each has locked a row before either wants the other's."""
        both_hold_one = threading.Barrier(2, timeout=20)
        make = sessionmaker(self._on.database.engine)

        def cross(number: int, rows: tuple[int, int]) -> None:
            def work(uow: UnitOfWork[Session]) -> None:
                self.attempts[number] += 1
                first = self.attempts[number] == 1
                run(uow, number, rows, between=both_hold_one.wait if first else None)

            retry = Retry(max_attempts=ATTEMPTS, initial=0.05, max_delay=0.2)
            retry_unit(make, work, retry=retry)

        with ThreadPoolExecutor(2) as threads:
            pairs = [(WRITERS * UNITS, (1, 2)), (WRITERS * UNITS + 1, (2, 1))]
            for done in [threads.submit(cross, *pair) for pair in pairs]:
                done.result()

    def _unit(self, number: int, rows: tuple[int, int], *, impatient: bool) -> Work:
        def work(uow: UnitOfWork[Session]) -> None:
            with self._lock:
                self.attempts[number] += 1
            run(uow, number, rows, impatient=impatient)

        return work

    def _resolve(self, unknown: CommitUnknown) -> bool:
        self.asked += 1
        # whoever asks may be ended, too: it then asks again
        answer = commit_outcome(self._look, unknown)
        assert answer is not None
        return answer

    def judged(self) -> list[str]:
        """Each unit's effect is there once, and the counters add up."""
        self._look.dispose()  # its sessions may have been ended
        wrong = [f"never happened: {code}" for code in CODES if not self.codes[code]]
        with self._look.connect() as connection:
            numbers = Counter(connection.scalars(sa.text("select number from scene_effect")))
            total = connection.execute(sa.text("select sum(n) from scene_counter")).scalar_one()
        twice = [number for number, count in numbers.items() if count > 1]
        lost = [number for number in range(WRITERS * UNITS + 2) if number not in numbers]
        if twice or lost or total != 2 * (WRITERS * UNITS + 2):
            wrong.append(f"twice: {twice}, lost: {lost}, sum {total}")
        if max(self.attempts.values()) > ATTEMPTS:
            wrong.append(f"{max(self.attempts.values())} attempts")
        self._look.dispose()
        asyncio.run(self._on.database.close())
        return wrong


def run(
    uow: UnitOfWork[Session],
    number: int,
    rows: tuple[int, int],
    *,
    impatient: bool = False,
    between: Callable[[], object] | None = None,
) -> None:
    """Two counters, in whatever order; the first one's row is locked, and so orders the key."""
    session, (first, second) = uow.session, rows
    session.execute(sa.text("set local deadlock_timeout = '20ms'"))
    if impatient:
        session.execute(sa.text("set local lock_timeout = '5ms'"))
    for row in (first, second):
        session.execute(sa.text("update scene_counter set n = n + 1 where k = :k"), {"k": row})
        if between is not None and row == first:
            between()
    session.execute(
        sa.text("insert into scene_effect (number) values (:number)"), {"number": number}
    )
    key = f"counter{first}"
    id_ = uow.publish(Said(word=str(number)), key=key)
    session.execute(intended(id_, key, b'{"word":"%d"}' % number))
