"""A batch waits for the statement before it to leave, and never for long."""

from __future__ import annotations

import asyncio
import threading

from outbox_saga_relay.head_start import LIMIT, HeadStart


async def test_it_lasts_until_another_thread_has_sent_its_statement() -> None:
    over = asyncio.Event()
    head_start = HeadStart(over.set, now=lambda: 100.0)
    assert head_start.left == 0.0
    head_start.begin()
    assert head_start.left > 0.0
    thread = threading.Thread(target=head_start.teller())
    thread.start()
    await over.wait()
    thread.join()
    assert head_start.left == 0.0


async def test_it_ends_by_itself_when_nothing_is_sent() -> None:
    now = 100.0
    head_start = HeadStart(lambda: None, now=lambda: now)
    head_start.begin()
    now += LIMIT
    assert head_start.left == 0.0


def test_a_thread_that_is_late_for_the_loop_disturbs_nobody() -> None:
    head_start = HeadStart(lambda: None)

    async def leave_it_behind() -> None:
        head_start.begin()
        late.append(head_start.teller())

    late: list[object] = []
    asyncio.run(leave_it_behind())
    (tell,) = late
    assert callable(tell)
    tell()
