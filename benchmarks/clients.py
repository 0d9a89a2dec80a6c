"""Clients in processes of their own, as services are: started once, told what to run, in step.

Each variant is run by the same processes, one after the other, so what is compared differs in
nothing but the variant; and the CPU time of each client is its own.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from benchmarks.load import Watch
from benchmarks.measuring import Sample

_HEAD_START = 0.05  # seconds until all clients begin together


class Client(Protocol):
    """The work of one process."""

    def run(self, variant: str, until: float) -> int:
        """Does it until that moment of `time.monotonic()`; how often."""
        ...

    def close(self) -> None:
        """Disconnects."""
        ...


MakeClient = Callable[[str, int], Client]


@dataclass(frozen=True, slots=True)
class _Order:
    variant: str
    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Answer:
    count: int
    seconds: float
    cpu: float
    trouble: str = ""


def _serve(pipe: Connection, make: MakeClient, url: str, number: int) -> None:
    client = make(url, number)
    try:
        while (order := pipe.recv()) is not None:
            pipe.send(_carry_out(client, order))
    finally:
        client.close()


def _carry_out(client: Client, order: _Order) -> _Answer:
    try:
        time.sleep(max(0.0, order.start - time.monotonic()))
        cpu, began = time.process_time(), time.monotonic()
        count = client.run(order.variant, began + order.seconds)
        return _Answer(count, time.monotonic() - began, time.process_time() - cpu)
    except Exception:  # noqa: BLE001 - told to the parent, which raises
        return _Answer(0, 1.0, 0.0, traceback.format_exc())


class Clients:
    """So many processes that do the same at the same time. See `clients`."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def measure(self, variant: str, seconds: float) -> Sample:
        """All of them run the variant, after a short run that warms them up."""
        self._run(variant, min(0.2, seconds / 4))
        with Watch() as watch:
            answers = self._run(variant, seconds)
        # everybody began together and stopped within one transaction of each other
        return Sample(
            count=sum(answer.count for answer in answers),
            seconds=max(answer.seconds for answer in answers),
            client_cpu=sum(answer.cpu for answer in answers),
            all_cpu=watch.ours,
            foreign=watch.foreign,
        )

    def _run(self, variant: str, seconds: float) -> list[_Answer]:
        order = _Order(variant, time.monotonic() + _HEAD_START, seconds)
        for pipe in self._pipes:
            pipe.send(order)
        answers: list[_Answer] = [pipe.recv() for pipe in self._pipes]
        for answer in answers:
            if answer.trouble:
                raise RuntimeError(f"a client failed at {variant!r}:\n{answer.trouble}")
        return answers


@contextmanager
def clients(count: int, make: MakeClient, url: str) -> Iterator[Clients]:
    """That many processes, each with a client made by `make(url, number)`; gone at the end."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, make, url, number), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        yield Clients(pipes)
        for pipe in pipes:
            pipe.send(None)
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
