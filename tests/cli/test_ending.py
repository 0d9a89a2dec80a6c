"""How a program ends while a plain function of a user's goes on in its thread."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PATIENCE = 20.0  # seconds
PROGRAM = """
import asyncio, sys, threading

import click

from outbox_saga.calling import time_in_thread
from outbox_saga.errors import ConfigurationError
from outbox_saga.worker_threads import WorkerThreads
from outbox_saga_relay import programs
from outbox_saga_relay.cli import Root

threads = WorkerThreads(1, "hangs")
begun = threading.Event()
waits = programs.beyond_their_time


def work(begin):
    begin()
    begun.set()
    threading.Event().wait()


def said_that_it_waits():
    print("waits", flush=True)
    return waits()


async def fails(stop):
    await time_in_thread(threads, work, 0.1)
    raise {error}


async def stops(stop):
    call = asyncio.create_task(time_in_thread(threads, work, 3600.0))
    await asyncio.to_thread(begun.wait)
    print("begun", flush=True)
    await stop.wait()
    call.cancel()
    await asyncio.wait([call])


programs.beyond_their_time = said_that_it_waits
root = Root("root", lazy={{}}, params=[click.Option(["--debug"], is_flag=True)])
root.callback = lambda debug: None
root.command("fails")(lambda: programs.until_signalled(fails))
root.command("stops")(lambda: programs.until_signalled(stops))
root()
"""


@contextmanager
def program(command: str, error: str = "ValueError") -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(error=error), command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ConfigurationError('its table is gone')", "Error: its table is gone\n"),
        ("ValueError('a mistake')", "ValueError: a mistake\n"),
    ],
)
def test_a_program_that_fails_says_so_and_ends_though_a_plain_function_hangs(
    error: str, said: str
) -> None:
    with program("fails", error) as failing:
        _, told = failing.communicate(timeout=PATIENCE)
    assert failing.returncode == 1
    assert said in told
    assert ("Traceback" in told) == error.startswith("ValueError")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_program_that_waits_for_a_plain_function(
    number: signal.Signals,
) -> None:
    with program("stops") as stopping:
        assert stopping.stdout is not None
        assert stopping.stdout.readline() == "begun\n"
        stopping.send_signal(number)
        assert stopping.stdout.readline() == "waits\n"
        stopping.send_signal(number)
        assert stopping.wait(PATIENCE) == 1
