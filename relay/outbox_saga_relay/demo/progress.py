"""How far the run is, on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from outbox_saga_relay.demo.kills import Kill

_LINE_EVERY = 5.0  # seconds


class Bars:
    """For a terminal.

    Args:
        console: On standard error.
    """

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            Elapsed(),
            console=console,
        )
        self._task: TaskID | None = None
        self._total = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int) -> None:
        """A new bar; the one before is full."""
        if self._task is not None:
            self._bars.update(self._task, total=self._total or 1, completed=self._total or 1)
            self._bars.stop_task(self._task)
        self._total = total
        self._task = self._bars.add_task(name, total=total or None, note="")

    def progress(self, started: int, ended: int) -> None:
        """The bar shows what has ended, and says how many are under way."""
        if self._task is not None:
            note = f"{started - ended} under way" if started > ended else ""
            self._bars.update(self._task, completed=ended, note=note)

    def killed(self, kill: Kill) -> None:
        """A line above the bars."""
        self._bars.console.print(
            f"[red]SIGKILL[/red] {kill.process}: {kill.in_flight} {kill.what}"
        )


class Lines:
    """For a pipe or a log file."""

    def __init__(self) -> None:
        self._name = ""
        self._total = 0
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to tidy up."""

    def phase(self, name: str, total: int) -> None:
        """One line."""
        self._name, self._total = name, total
        self._say(f"{name}: {total}" if total else name)

    def progress(self, started: int, ended: int) -> None:
        """A line now and then."""
        if time.monotonic() - self._said > _LINE_EVERY:
            self._say(f"{self._name}: {ended} of {self._total} ended, {started} started")

    def killed(self, kill: Kill) -> None:
        """One line."""
        self._say(f"SIGKILL {kill.process}: {kill.in_flight} {kill.what}")

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for


def observe() -> Bars | Lines:
    """The one that suits standard error."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()
