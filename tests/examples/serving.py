"""Examples that are web applications, as their READMEs start them."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 30.0


class Program:
    """A running application; what it says is read all the time, or it would stand still."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **env},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said = ""
        self._address: queue.Queue[str | None] = queue.Queue()
        self._listens = threading.Thread(target=self._listen)
        self._listens.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._said += line
                if found := re.search(r"[Rr]unning on (http://[0-9.:]+)", line):
                    self._address.put(found[1])
        self._address.put(None)

    def address(self) -> str:
        """Where it answers."""
        address = self._address.get(timeout=PATIENCE)
        assert address is not None, self._said
        return address

    def terminate(self) -> str:
        """All it said until SIGTERM had ended it."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._listens.join()
        return self._said

    def kill(self) -> None:
        """It is gone."""
        self._process.kill()
        self._process.wait()
        self._listens.join()


@contextmanager
def serving(
    example: str, folder: Path, env: dict[str, str], *words: str
) -> Iterator[tuple[str, Program]]:
    """The application, and its address once it answers.

    Args:
        folder: The example is copied to it.
        words: Of the command, behind `python -m`.
    """
    shutil.copytree(EXAMPLES / example, folder, dirs_exist_ok=True)
    program = Program([sys.executable, "-m", *words], folder, env)
    try:
        yield program.address(), program
    finally:
        program.kill()


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """What it answers: JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def refused(url: str, body: dict[str, Any]) -> int:
    """The status with which it says no."""
    try:
        ask(url, body)
    except urllib.error.HTTPError as error:
        return error.code
    raise AssertionError("it was not refused")


def until(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """The first look that is good."""
    deadline = time.monotonic() + PATIENCE
    while not good(found := look()):
        assert time.monotonic() < deadline, found
    return found
