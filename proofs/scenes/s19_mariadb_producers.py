"""19: MariaDB; a relay that claims all the time, with 1,000 rows waiting, and the producers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

from outbox_saga.testing.servers import MariaDB
from outbox_saga.unit_of_work import UnitOfWork
from proofs.outages.relaying import ROOT
from proofs.peril.brood import born, end, until
from proofs.peril.child import command
from proofs.registry import Outcome, say
from proofs.scenes.world import TOPIC, TYPE, World, intended, told, world

ROUNDS = int(os.environ.get("OUTBOX_SAGA_PROOF_ROUNDS", "3"))  # of each kind, in turn
SECONDS = 12.0  # each
PRODUCERS = 4
RATE = 40.0  # transactions a second of each
BACKLOG = 1000  # rows
LEAST, MOST = BACKLOG * 0.6, BACKLOG * 1.4  # of the backlog while the relay works
TIMES = 2.0


@dataclass(frozen=True)
class Round:
    """What came of one.

    Args:
        took: Milliseconds of each transaction.
        errors: By number.
        backlog: Rows waiting, now and then.
        published: By the relay, meanwhile.
    """

    took: list[float]
    errors: Counter[str]
    backlog: list[int]
    published: int

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return statistics.quantiles(self.took, n=100)[98]


def show() -> Outcome:
    """Rounds without and with a relay in turn; it may publish as much as the producers write."""
    found: dict[str, list[Round]] = {"without": [], "with": []}
    with world(MariaDB) as on, TemporaryDirectory() as folder:
        log = Path(folder, "log")
        _round(on, log, relay=True, seconds=2.0)  # warm
        for _ in range(ROUNDS):
            for name, rounds in found.items():
                rounds.append(_round(on, log, relay=name == "with", seconds=SECONDS))
                say(f"  {name}: p99 {rounds[-1].p99:.2f} ms, {len(rounds[-1].took)} transactions")
        with on.relay():
            on.quiesce()
        violations, counts = on.check()
        words = log.read_text()
    errors = sum((one.errors for rounds in found.values() for one in rounds), Counter[str]())
    backlog = [rows for one in found["with"] for rows in one.backlog]
    p99 = {name: statistics.median(one.p99 for one in rounds) for name, rounds in found.items()}
    published = [one.published for one in found["with"]]
    good = (
        not violations
        and not errors
        and "1205" not in words
        and p99["with"] < TIMES * p99["without"]
        and min(backlog) >= LEAST
        and max(backlog) <= MOST
        and min(published) >= PRODUCERS * RATE * SECONDS / 2
    )
    return Outcome(
        good,
        {
            "p99 ms, median of the rounds": {n: round(ms, 2) for n, ms in p99.items()},
            "times": round(p99["with"] / p99["without"], 2),
            "rounds, p99 ms": {n: [round(one.p99, 2) for one in r] for n, r in found.items()},
            "p50 ms": {
                name: round(statistics.median(ms for one in rounds for ms in one.took), 2)
                for name, rounds in found.items()
            },
            "transactions": {n: sum(len(one.took) for one in r) for n, r in found.items()},
            "errors by number": dict(errors),
            "1205 in the relay's log": "1205" in words,
            "backlog with the relay": {"least": min(backlog), "most": max(backlog)},
            "published meanwhile": published,
            **counts,
            "first violations": told(violations),
        },
    )


def _round(on: World, log: Path, *, relay: bool, seconds: float) -> Round:
    if _waiting(on) > BACKLOG:
        with on.relay():
            on.quiesce()
    with ExitStack() as stack:
        url = on.database.url.render_as_string(hide_password=False)
        program = [sys.executable, "-m", "proofs.peril.producer", url]
        producers = [
            subprocess.Popen(
                [*program, f"{time.time()} {n}", str(seconds), str(RATE)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for n in range(PRODUCERS)
        ]
        for producer in producers:
            assert producer.stdout is not None
            assert producer.stdout.readline() == b"ready\n"
        if relay:  # it works from here on, and publishes as much as they write
            stack.enter_context(_relay(on, log))
        # nothing but the relay, and these looks, may come between the producers and the database
        _fill(on)
        before = _waiting(on)
        for producer in producers:
            assert producer.stdin is not None
            producer.stdin.write(b"go\n")
            producer.stdin.flush()
        backlog = []
        until_then = time.monotonic() + seconds
        while time.monotonic() < until_then:
            backlog.append(_waiting(on))
            time.sleep(0.25)
        took: list[float] = []
        errors: Counter[str] = Counter()
        for producer in producers:
            said: dict[str, Any] = json.loads(producer.communicate()[0])
            took += said["took"]
            errors.update(said["errors"])
        published = before + len(took) - _waiting(on)
    return Round(took, errors, backlog, published)


@contextmanager
def _relay(on: World, log: Path) -> Iterator[None]:
    url = on.database.url.render_as_string(hide_password=False)
    told = ["relay", "--database-url", url, "--broker", on.broker_url, "--log-level", "warning"]
    told += ["--max-rate", str(PRODUCERS * RATE), "--poll", "0.05"]
    lease = on.database.tables.partition_lease
    owned = sa.select(sa.func.count()).where(lease.c.owner.is_not(None))

    def works() -> bool:
        with on.database.engine.connect() as connection:
            return bool(connection.execute(owned).scalar_one())

    with born(command, told, log) as process:
        until(works, "the relay has its lease")
        yield
        code, _ = end(process)
        assert code == 0, code


def _fill(on: World) -> None:
    """So many rows wait, no more and no fewer."""
    with on.database.begin() as connection:
        uow = UnitOfWork(connection)
        for n in range(BACKLOG - _waiting(on)):
            body = b'{"n":%d}' % n  # without a key: a producer must not wait for this
            id_ = uow.publish_body(body, topic=TOPIC, type=TYPE)
            connection.execute(intended(id_, None, body))


def _waiting(on: World) -> int:
    with on.database.engine.connect() as connection:
        outbox = on.database.tables.outbox
        return connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()
