"""One measurement of a peer: a process of its own, timed by itself, watched from here."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from benchmarks.load import Watch
from benchmarks.measuring import Sample
from benchmarks.peers.environments import PeerUnavailable, python_of
from benchmarks.peers.known import Peer, Settings

_HERE = Path(__file__).resolve().parent
_ASSEMBLED = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(_HERE)}


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
    command = [str(python_of(peer)), str(_HERE / peer.script), json.dumps(order)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **_ASSEMBLED},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            process.wait()
            raise PeerUnavailable("its script ended before it was ready")
        with around or nullcontext(), Watch() as watch:
            process.stdin.write("go\n")
            process.stdin.flush()
            told = process.stdout.readline()
        process.stdin.close()
    if not told:
        raise PeerUnavailable("its script ended before it was through")
    found = json.loads(told)
    if found["left"] or found["seen"] < rows:
        raise RuntimeError(f"{peer.name}: {found['left']} of {rows} rows were not published")
    return Sample(rows, found["seconds"], found["cpu"], watch.ours, watch.foreign)
