"""One measurement of a process: it is timed by itself, and watched from here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.load import Watch
from benchmarks.measuring import Sample
from benchmarks.peers.environments import PeerUnavailable, python_of
from benchmarks.peers.known import Peer, Settings

HERE = Path(__file__).resolve().parent
_ASSEMBLED = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(HERE)}


def drained(
    peer: Peer,
    settings: Settings,
    dsn: str,
    rows: int,
    sleep: float,
    around: AbstractContextManager[object] | None = None,
) -> Sample:
    """So many rows of `bench_backlog`, published by the peer with these settings.

    Args:
        around: Entered when the rows are there, left when they have been published.
    """
    order = {"dsn": dsn, "rows": rows, "sleep": sleep, "settings": dict(settings)}
    command = [str(python_of(peer)), str(HERE / peer.script), json.dumps(order)]
    (found,), watch = measured([command], _ASSEMBLED, around)
    if found["left"] or found["seen"] < rows:
        raise RuntimeError(f"{peer.name}: {found['left']} of {rows} rows were not published")
    return Sample(rows, found["seconds"], found["cpu"], watch.ours, watch.foreign)


def measured(
    commands: Sequence[Sequence[str]],
    environment: dict[str, str],
    around: AbstractContextManager[object] | None = None,
) -> tuple[list[dict[str, Any]], Watch]:
    """What each of these processes says of itself; all begin at once, when the last is ready."""
    with ExitStack() as running:
        processes = [running.enter_context(_ready(each, environment)) for each in commands]
        with around or nullcontext(), Watch() as watch:
            for process in processes:
                process.stdin.write("go\n")
                process.stdin.flush()
            told = [process.stdout.readline() for process in processes]
        for process in processes:
            process.stdin.close()
    if not all(told):
        raise PeerUnavailable("its script ended before it was through")
    return [json.loads(each) for each in told], watch


@contextmanager
def _ready(command: Sequence[str], environment: dict[str, str]) -> Iterator[Any]:
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            process.wait()
            raise PeerUnavailable("its script ended before it was ready")
        yield process
