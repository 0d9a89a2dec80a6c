"""20: four processes write to a SQLite file while a relay empties it: none is told "locked".

Their transactions read before they write, the way in which SQLite refuses a writer at once,
whatever its timeout, unless it began as one.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox_saga.database import BUSY_SECONDS
from proofs.outages.relaying import ROOT
from proofs.registry import Outcome
from proofs.scenes.world import World, told, world

WRITERS = ("sync", "async", "sync", "async")
EACH = 500
PATIENCE = 200.0  # seconds


def show() -> Outcome:
    """All of them, from the first transaction to the last message."""
    with world(None) as on:
        with on.database.begin() as connection:
            connection.exec_driver_sql("create table scene_counter (n integer)")
            connection.exec_driver_sql("insert into scene_counter values (0)")
        with on.relay("--poll", "0.02"):
            writers = [start(on, kind) for kind in WRITERS]
            wrong, took = ended(writers)
            mode, with_log = journal(on)
            seconds = on.quiesce()
        violations, counts = on.check()
        with on.database.engine.connect() as connection:
            total = connection.execute(sa.text("select n from scene_counter")).scalar_one()
    expected = len(WRITERS) * EACH
    if total != expected:
        wrong.append(f"the counter is {total}, not {expected}")
    longest = max((one["longest"] for one in took), default=0.0)
    return Outcome(
        not wrong
        and not violations
        and (mode, with_log) == ("wal", True)
        and longest < BUSY_SECONDS
        and counts["delivered"] >= expected,
        {
            "writers": len(WRITERS),
            "transactions": expected,
            "journal mode": mode,
            "longest transaction in seconds": round(longest, 2),
            "timeout in seconds": BUSY_SECONDS,
            "seconds of the writers": [round(one["all"], 1) for one in took],
            "seconds until at rest": seconds,
            **counts,
            "first violations": [*wrong, *told(violations)][:20],
        },
    )


def start(on: World, kind: str) -> subprocess.Popen[str]:
    """One writer."""
    command = [sys.executable, "-m", "proofs.scenes.sqlite_writer", on.url, str(EACH), kind]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(writers: list[subprocess.Popen[str]]) -> tuple[list[str], list[dict[str, Any]]]:
    """What went wrong, and what each that ended well told of itself."""
    wrong: list[str] = []
    found: list[dict[str, Any]] = []
    for writer in writers:
        try:
            out, err = writer.communicate(timeout=PATIENCE)
        finally:
            writer.kill()
        if writer.returncode or "locked" in err:
            wrong.append(f"a writer ended with {writer.returncode}: {err.strip()[-300:]}")
        else:
            found.append(json.loads(out))
    return wrong, found


def journal(on: World) -> tuple[str, bool]:
    """The file's journal mode, as somebody else sees it, and whether its log is there."""
    path = on.database.url.database
    assert path is not None
    with sqlite3.connect(path) as connection:
        mode = connection.execute("pragma journal_mode").fetchone()[0]
    connection.close()
    return mode, Path(f"{path}-wal").exists()
