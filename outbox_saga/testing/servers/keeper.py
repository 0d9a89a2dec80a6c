"""The parent of one private server: ends it, and deletes its data, when its own parent is gone.

A program of its own, run as `python -I -S keeper.py '<json>'`, standard library only; the server
gets its environment. Between a test run and its servers it is what makes "nothing is left behind"
true:

* its standard input is a pipe from the process that wants the server. End of file, or another
  parent than at the start, means that process is gone, even by SIGKILL;
* the server gets the parent-death signal (Linux), so it does not outlive the keeper either. It
  is set here because that signal follows the parent's *thread*, and the keeper has only one;
* as the subreaper of its descendants it sees them all end: when the keeper has ended, so has
  every process of the server (PostgreSQL's, for one, lead sessions of their own).

It reads the lines `stop`, `kill`, `pause`, `resume` and answers each with `done` (after `stop`
and `kill` when the last process has ended, and then ends itself).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LINUX = sys.platform == "linux"


def prctl(option: int, value: int) -> None:
    """Linux's process control; elsewhere the pipe alone has to do."""
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def processes() -> Iterator[tuple[int, int, str]]:
    """Process, parent and state ("T" = stopped) of everything that has not ended yet."""
    if not LINUX:
        listing = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,state="], capture_output=True, text=True, check=True
        )
        for line in listing.stdout.splitlines():
            pid, ppid, state = line.split()
            yield int(pid), int(ppid), state[0]
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                # "pid (name) state ppid ...", where the name may hold spaces and brackets
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    yield int(entry.name), int(ppid), state


def descendants() -> dict[int, str]:
    """Every living process below this one with its state, parents first."""
    seen = list(processes())
    family = {os.getpid(): ""}
    queue = [os.getpid()]
    for above in queue:  # grows while it is read
        for pid, parent, state in seen:
            if parent == above:
                family[pid] = state
                queue.append(pid)
    del family[os.getpid()]
    return family


def send(number: int) -> None:
    """Send a signal to all of the server's processes."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stop_all() -> None:
    """Return when all of the server's processes stand still; a signal alone only asks for it."""
    while set(descendants().values()) != {"T"}:
        send(signal.SIGSTOP)
        time.sleep(0.001)


def reap() -> bool:
    """Collect the children that have ended; True when none is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def wait_for_all(seconds: float) -> None:
    """Return when every process has ended; after that many seconds they are killed."""
    deadline = time.monotonic() + seconds
    while not reap():
        if time.monotonic() > deadline:
            send(signal.SIGKILL)
        time.sleep(0.005)


def tell(word: str) -> None:
    """Answer the process that wants the server."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def launch(order: dict[str, Any]) -> int:
    """Start the server's process and give its id."""
    ctypes.CDLL(None)  # loaded before the fork: the child should do as little as it can
    with Path(order["log"]).open("ab") as log:
        return subprocess.Popen(
            order["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=order["directory"],
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
            **order["user"],
        ).pid


def keep(order: dict[str, Any]) -> None:
    """Serve until the server has ended or nobody wants it any more."""
    born_to = os.getppid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)  # a child's end wakes the select below
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that wants the server
    server = launch(order)
    tell("started")
    while True:
        ready = select.select([0, readable], [], [], 1.0)[0]
        if readable in ready:
            os.read(readable, 512)
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(server, os.WNOHANG)[0]:  # ended by itself: what is left, ends too
                    return wait_for_all(2)
        command = sys.stdin.readline().strip() if 0 in ready else None
        if command == "" or os.getppid() != born_to:
            send(signal.SIGKILL)
            wait_for_all(0)
            shutil.rmtree(order["directory"], ignore_errors=True)
            return None
        if command == "stop":
            send(signal.SIGCONT)
            os.kill(server, order["stop_signal"])
            wait_for_all(20)
        elif command == "kill":
            send(signal.SIGKILL)
            wait_for_all(0)
        elif command == "pause":
            stop_all()
        elif command == "resume":
            send(signal.SIGCONT)
        if command:
            tell("done")
        if command in ("stop", "kill"):
            return None


if __name__ == "__main__":
    keep(json.loads(sys.argv[1]))
