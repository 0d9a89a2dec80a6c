"""A relay process, as an operator starts it, and the stream it publishes to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nats
import sqlalchemy as sa
from nats.js import api

from outbox_saga.database import Database
from outbox_saga_migrations import upgrade

ROOT = Path(__file__).resolve().parents[2]
NAME = "outages"
START = 60.0  # seconds until a relay must have begun
END = 30.0  # seconds until it must have ended


@contextmanager
def relay(
    database: Database, broker: str, *options: str, log: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """One that has begun its work; it is ended in good order.

    Args:
        database: Whose outbox.
        broker: Its URL.
        options: Of the command.
        log: A file's number, for what it logs.
    """
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "outbox_saga_relay", "relay"]
    command += ["--database-url", url, "--broker", broker, "--log-level", "error", *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        _until_it_works(database, process)
        yield process
        process.terminate()
        process.wait(END)
    finally:
        process.kill()
        process.wait()


def _until_it_works(database: Database, process: subprocess.Popen[bytes]) -> None:
    table = database.tables.process
    alive = sa.select(sa.func.count()).where(table.c.pid == process.pid)
    deadline = time.monotonic() + START
    with database.engine.connect() as connection:
        while not connection.execute(alive).scalar_one():
            connection.rollback()
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the relay does not begin")
            time.sleep(0.02)


def memory(process: subprocess.Popen[bytes]) -> float:
    """The most that it has had at once so far, in MB."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise LookupError("this system does not tell how much memory a process has")


def prepare(url: str) -> Database:
    """The database with our tables, and nothing in them."""
    database = Database(url)
    with database.begin() as connection:
        upgrade(connection)
    return database


def counts(database: Database) -> dict[str, int]:
    """Rows that are left in the tables of messages."""
    tables = database.tables
    with database.engine.connect() as connection:
        return {
            table.name.removeprefix("outbox_saga_"): connection.execute(
                sa.select(sa.func.count()).select_from(table)
            ).scalar_one()
            for table in (tables.outbox, tables.dead_letter, tables.blocked_key)
        }


async def create_stream(server: str, subjects: Sequence[str], **settings: int) -> None:
    """It keeps everything; what it had is gone."""
    client = await nats.connect(server)
    try:
        js = client.jetstream()
        for found in await js.streams_info():
            if found.config.name == NAME:
                await js.delete_stream(NAME)
        config = api.StreamConfig(
            name=NAME,
            subjects=list(subjects),
            discard=api.DiscardPolicy.NEW,
            duplicate_window=0.1,
            **settings,  # type: ignore[arg-type]  # whole numbers only
        )
        await js.add_stream(config)
    finally:
        await client.close()


def cores() -> int:
    """Of this machine."""
    return os.cpu_count() or 1
