"""A service for `outbox-saga run shop:service`: it answers each word with a note in the till."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

import sqlalchemy as sa

from outbox_saga import Event, HandlerContext, Retry, Service, SyncHandlerContext


class Said(Event, topic="talk"):
    word: str


class Silent(Event, topic="talk"):
    n: int = 0


class Deaf(Event, topic="talk"):
    n: int = 0


service = Service(
    "shop",
    database=os.environ["SHOP_DATABASE"],
    broker=os.environ.get("SHOP_BROKER", "local"),
    poll=0.01,
)
something_else = 7


@service.on(Said)
async def said(handle: HandlerContext[Said]) -> None:
    await handle.session.execute(
        sa.text("insert into till (note) values (:note)"), {"note": handle.message.word}
    )


@service.on(Silent, timeout=0.1, retry=Retry(max_attempts=1))
def hangs(handle: SyncHandlerContext[Silent]) -> None:
    threading.Event().wait()


@service.on(Deaf, timeout=0.1, retry=Retry(max_attempts=1))
async def goes_on(handle: HandlerContext[Deaf]) -> None:
    while handle.message.n == 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    await asyncio.to_thread(threading.Event().wait)
