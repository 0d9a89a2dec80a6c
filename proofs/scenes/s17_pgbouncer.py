"""17: PgBouncer in transaction mode in front of everything."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.testing.servers import PgBouncer, Postgres18, choose
from proofs.chaos import stream
from proofs.outages.relaying import ROOT
from proofs.peril.brood import born, end, until
from proofs.peril.child import command
from proofs.peril.ear import ear
from proofs.peril.load import load
from proofs.registry import Outcome, say
from proofs.scenes.world import World, prepare, told

# The parts of the suite that touch PostgreSQL, in pieces of a few minutes
PIECES = {
    "relay": ["tests/relay"],
    "write path": ["tests/write_path"],
    "inbox and service": ["tests/inbox", "tests/service"],
    "sagas": ["tests/saga"],
    "operators": ["tests/operating", "tests/cli", "tests/queries", "tests/migrations"],
    "crashes": ["tests/crash"],
    "other": ["tests/doctor", "tests/found_by_attack", "tests/examples", "tests/demo"],
    "servers": ["tests/test_servers.py"],
}
WHERE = "postgres18"
PATIENCE = 600.0  # seconds for one piece
MESSAGES = 300
WARNING = "through a pooler LISTEN hears nothing"


def show() -> Outcome:
    """The suite; and a relay whose only URL leads through the pooler."""
    wanted = os.environ.get("OUTBOX_SAGA_PROOF_PIECE", "")
    pieces = {name: _suite(paths) for name, paths in PIECES.items() if wanted in name}
    alone = _without_a_direct_url()
    counts: Counter[str] = Counter()
    for piece in pieces.values():
        counts.update(piece["counts"])
    failed = [test for piece in pieces.values() for test in piece["failed"]]
    good = not failed and not alone["wrong"] and len(pieces) == len(PIECES)
    return Outcome(
        good and all(piece["exit code"] == 0 for piece in pieces.values()),
        {
            "pgbouncer": _version(),
            "tests": dict(counts),
            "pieces": {name: piece["counts"] for name, piece in pieces.items()},
            "left out": sorted({why for piece in pieces.values() for why in piece["left out"]}),
            "failed": failed,
            "without a direct URL": alone,
        },
    )


def _suite(paths: list[str]) -> dict[str, Any]:
    """What became of these tests, on PostgreSQL 18 behind the pooler."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        program = [sys.executable, "-m", "pytest", *paths, "-q", "-k", WHERE, "-p", "no:xdist"]
        program += ["--through-pgbouncer", f"--junitxml={report}"]
        run = subprocess.run(
            program, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        cases = list(ET.parse(report).iter("testcase"))
    counts: Counter[str] = Counter()
    failed, left_out = [], []
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
            failed.append(name)
        elif (skipped := case.find("skipped")) is not None:
            counts["left out"] += 1
            left_out.append(f"{name}: {skipped.get('message')}")
        else:
            counts["passed"] += 1
    say(f"  {paths}: {dict(counts)}")
    return {
        "counts": dict(counts),
        "failed": failed,
        "left out": left_out,
        "exit code": run.returncode,
    }


def _without_a_direct_url() -> dict[str, Any]:
    """One warning, no LISTEN, and everything goes out all the same."""
    with (
        choose(Postgres18) as server,
        PgBouncer.before(server, pool_size=3) as pooler,
        stream.broker() as (nats, broker_url),
        tempfile.TemporaryDirectory() as folder,
    ):
        asyncio.run(stream.create(nats))
        direct = server.create_database()
        url = pooler.through(direct) + "?pooler=true"
        database = Database(url)
        prepare(database)
        on = World(database, nats, broker_url)
        log = Path(folder, "log")
        arguments = ["relay", "--database-url", url, "--broker", broker_url]
        eyes = sa.create_engine(direct, poolclass=sa.NullPool)
        with ear(nats.url) as heard, born(command, arguments, log) as relay:
            with load(on, "17", waits=lambda count: count >= MESSAGES) as writing:
                until(lambda: len(heard.first) >= MESSAGES, "all of it")
            with eyes.connect() as connection:
                asked = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%%'"
                listening = connection.exec_driver_sql(asked).scalar_one()
            on.quiesce()
            code, _ = end(relay)
        eyes.dispose()
        violations, counts = on.check()
        warnings = log.read_text().count(WARNING)
        asyncio.run(database.close())
    wrong = told(violations)
    wrong += [] if code == 0 else [f"the relay ended with {code}"]
    wrong += [] if warnings == 1 else [f"{warnings} warnings"]
    wrong += [f"{listening} sessions LISTEN"] if listening else []
    return {"warnings": warnings, "rolled back": writing.rolled_back, **counts, "wrong": wrong}


def _version() -> str:
    found = subprocess.run(["pgbouncer", "--version"], capture_output=True, text=True, check=False)
    number = re.search(r"PgBouncer ([\d.]+)", found.stdout)
    return number[1] if number else "?"
