"""The demo's processes: started, frozen, killed and started again, and gone when the demo is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from outbox_saga.errors import OutboxSagaError

_PR_SET_PDEATHSIG = 1
_STOP_WITHIN = 15.0  # seconds
_SHOWN_OF_LOG = 2_000  # characters


class ProcessEnded(OutboxSagaError):
    """A process of the demo ended by itself. The end of its log says why."""


class ChildProcess:
    """One program of the demo, and the log of all its lives.

    On Linux it gets the parent-death signal, so that it does not outlive a demo that was killed.

    Args:
        name: For people.
        module: Run as `python -m`.
        arguments: Of the program.
        environment: Variables beyond ours.
        log: Where what it prints is appended.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", module, *arguments]
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, for the first time or again."""
        self._launch(subprocess.DEVNULL)

    def start_and_read_line(self) -> str:
        """Start it, and wait for the first line it prints; ProcessEnded when there is none."""
        process = self._launch(subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline().strip()
        if not line:
            process.wait()
            self.check()
        return line

    def check(self) -> None:
        """Raise ProcessEnded if it has ended by itself."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            said = self.log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_OF_LOG:]
            raise ProcessEnded(f"{self.name} ended by itself with code {code}: {said}")

    def freeze(self) -> None:
        """SIGSTOP; when this returns, it does nothing any more. Raises ProcessEnded as `check`."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # it is our child, so that its having stopped can be waited for, as its end can
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            process.returncode = os.waitstatus_to_exitcode(status)
            self.check()

    def thaw(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; when this returns, it is gone."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what does not end of itself; harmless if it is not running."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _running(self) -> subprocess.Popen[str]:
        self.check()
        assert self._process is not None
        return self._process

    def _launch(self, stdout: int) -> subprocess.Popen[str]:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops its processes
                preexec_fn=_DieWithParent() if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        return self._process


class _DieWithParent:
    """Run in the child between fork and exec; what it needs was loaded before the fork."""

    def __init__(self) -> None:
        self._parent = os.getpid()
        self._prctl = ctypes.CDLL(None).prctl

    def __call__(self) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:  # it died before that was set
            os._exit(1)


def stop_all(processes: Sequence[ChildProcess]) -> None:
    """Stop every one of them, whatever happens with the others; the last started first."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.stop)
