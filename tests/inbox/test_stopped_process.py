"""A real process that gets SIGSTOP in the middle of a handler, and goes on too late."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.inbox.processes import MakeProcess, Moods, note, said
from tests.relay.house import PATIENCE, House

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_stopped_process_is_taken_over_and_commits_nothing_when_it_goes_on(
    house: House, process: MakeProcess
) -> None:
    await process(Moods("one").asynchronous).deliver(said("one", key="k"))
    with house.eyes.begin() as connection:
        waiting = house.tables.inbox_waiting
        connection.execute(sa.update(waiting).values(until=house.clock.now()))
    program = subprocess.Popen(  # noqa: ASYNC220  # it is waited for in turn
        [sys.executable, "-m", "tests.inbox.stopped", house.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert await asyncio.to_thread(program.stdout.readline) == "inside\n"
        program.send_signal(signal.SIGSTOP)
        house.advance(31)
        successor = process(note)
        await successor.to_rest()  # its lease is over: that counts as an attempt
        assert [row.error_code for row in house.set_aside()] == ["process_died"]
        # waits for the stopped one's inbox row until the server ends its idle transaction
        await asyncio.wait_for(successor.later(), PATIENCE)
        assert house.notes() == ["one"]
        program.send_signal(signal.SIGCONT)
        said_at_last = await asyncio.to_thread(program.communicate, "go\n", timeout=PATIENCE)
        assert said_at_last[0] == "ended\n"
    finally:
        program.kill()
        program.communicate()
    assert house.notes() == ["one"]
    assert house.set_aside() == []
