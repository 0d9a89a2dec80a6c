"""Processes that are made by forking one that has imported all they need, in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds after which what a scene waits for counts as never coming
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "proofs.peril.child",
        # what it loads only when it needs it
        "outbox_saga.brokers.nats",
        "outbox_saga.brokers.nats_publishing",
        "outbox_saga.service",
        "outbox_saga_relay.programs",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.mysql.pymysql",
        "sqlalchemy.ext.asyncio",
    ]
)


# starting one asks after all others, and two threads that ask after one both read its exit code
_asking = threading.Lock()


@contextmanager
def born(target: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """A process that runs this; killed at the end of the block, if it has not ended by itself."""
    process = _context.Process(target=target, args=arguments, daemon=True)
    with _asking:
        process.start()
    try:
        yield process
    finally:
        if not wait([process.sentinel], 0):
            with _asking:
                process.kill()
        ended(process)


def ended(process: BaseProcess, patience: float = PATIENCE) -> int | None:
    """Its exit code, once it has ended; None: it has not, in that time."""
    wait([process.sentinel], patience)
    with _asking:
        process.join(0)
        return process.exitcode


def end(process: BaseProcess, patience: float = PATIENCE) -> tuple[int | None, float]:
    """SIGTERM; its exit code (None: it did not end in time) and the seconds it took."""
    assert process.pid is not None
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    code = ended(process, patience)
    return code, time.monotonic() - began


def stands_still(process: BaseProcess) -> bool:
    """Whether it was stopped by a signal."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Returns once it holds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never came: {what}")
        time.sleep(0.01)
