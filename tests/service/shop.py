"""A service for `outbox-saga run shop:service`: it answers each word with a note in the till."""

from __future__ import annotations

import os

import sqlalchemy as sa

from outbox_saga import Event, HandlerContext, Service


class Said(Event, topic="talk"):
    word: str


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
