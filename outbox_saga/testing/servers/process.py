"""A server as a child process of ours: private port, private directory, never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from outbox_saga.testing.servers.memory import folder_in_memory
from outbox_saga.testing.servers.place import Place, ServerFailed, Source, free_port

_KEEPER = Path(__file__).with_name("keeper.py")


class LocalProcess(Place):
    """A program of this machine, run for us alone and gone when we are gone (see `keeper`).

    Subclasses give the command, and what has to happen once before it first runs.
    """

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    #: Does the program refuse to run as root? Then it runs as `nobody` where we are root.
    refuses_root: ClassVar[bool] = False
    host = "127.0.0.1"

    def __init__(self, source: Source, *, durable: bool) -> None:
        self.source = source
        self.durable = durable
        self.port = 0
        self.directory = Path()
        self._keeper: subprocess.Popen[str] | None = None
        self._cleaner: weakref.finalize[..., Any] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The program and its arguments; the port and the directory are known by now."""

    def prepare(self) -> None:
        """Whatever has to be done once, such as an empty database; by default, nothing."""

    def environment(self) -> Mapping[str, str]:
        """Variables beyond ours."""
        return {}

    def start(self) -> None:
        """Start it; harmless when it runs. Port and directory are chosen the first time."""
        if self._keeper is not None and self._keeper.poll() is None:
            return
        if not self.port:
            self._settle()
        order = {
            "command": list(self.command()),
            "directory": str(self.directory),
            "log": str(self.log),
            "user": self.user(),
            "stop_signal": int(self.stop_signal),
        }
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_KEEPER), json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # handed on to the server; as an argument everybody could read it in the process
                # list, with whatever tokens there are
                env={**os.environ, "HOME": str(self.directory), **self.environment()},
                start_new_session=True,  # Ctrl-C at a terminal goes to every process of a session
            )
        if self._answer() != "started":
            raise ServerFailed(f"{self.command()[0]} could not be run:\n{self._log_end()}")

    def _settle(self) -> None:
        # what is not durable need not wait for a disk
        folder = None if self.durable else folder_in_memory()
        self.directory = Path(tempfile.mkdtemp(prefix="outbox-saga-", dir=folder))
        self._cleaner = weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.port = free_port()
        self.log.touch()
        if user := self.user():
            os.chown(self.directory, user["user"], user["group"])
        self.prepare()

    @property
    def log(self) -> Path:
        """Everything the server has printed."""
        return self.directory / "server.log"

    def user(self) -> dict[str, Any]:
        """Arguments of `subprocess` that drop root; none where that is not needed."""
        if not self.refuses_root or os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def run(self, *command: str) -> None:
        """Run a preparing command in the server's directory, as the server's user."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            **self.user(),
        )
        if done.returncode:
            raise ServerFailed(f"{command[0]} ended with {done.returncode}:\n{done.stdout}")

    def stop(self) -> None:
        """End it in good order; killed if that takes more than 20 seconds."""
        self._end("stop")

    def kill(self) -> None:
        """SIGKILL all of its processes; they have ended when this returns."""
        self._end("kill")

    def pause(self) -> None:
        """SIGSTOP all of its processes."""
        self._ask("pause")

    def resume(self) -> None:
        """SIGCONT all of its processes."""
        self._ask("resume")

    def discard(self) -> None:
        """SIGKILL it, since nobody will read its data, and delete those."""
        self.kill()
        if self._cleaner is not None:
            self._cleaner()
        self.port = 0

    def ended(self) -> str | None:
        """None while it runs; otherwise the end of its log."""
        if self._keeper is None or self._keeper.poll() is not None:
            return self._log_end()
        return None

    def _end(self, command: str) -> None:
        if self._keeper is None:
            return
        self._ask(command)
        self._keeper.wait()
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a command that nobody read any more
                    pipe.close()
        self._keeper = None

    def _ask(self, command: str) -> None:
        """Tell the keeper; one that has ended (as its server did) needs no telling."""
        if self._keeper is None or self._keeper.stdin is None:
            return
        try:
            self._keeper.stdin.write(command + "\n")
            self._keeper.stdin.flush()
        except BrokenPipeError:
            return
        self._answer()

    def _answer(self) -> str:
        if self._keeper is None or self._keeper.stdout is None:
            return ""
        return self._keeper.stdout.readline().strip()

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
