"""12: what is too large is refused where it is published, or dead at its first attempt.

The door has a limit (`max_body`), the NATS server one (`max_payload`, of body and headers, of
which we keep a reserve), and a stream may have one (`max_msg_size`). At each: one byte less, to
the byte, one more, and 50 MB; among small messages of other keys, which all arrive, once.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import nats
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox_saga.brokers.nats_publishing import largest
from outbox_saga.envelopes import MAX_BODY
from outbox_saga.errors import MessageRefused
from proofs.chaos.stream import NAME
from proofs.registry import Outcome, say
from proofs.scenes.world import World, told, world

HUGE = 50_000_000
SMALL_KEYS, SMALL_EACH = 20, 10  # around each large one
STREAM_LIMIT = 100_000


def show() -> Outcome:
    """The three limits."""
    measured: dict[str, Any] = {}
    good = True
    for name, settings in {
        "server's max_payload": {},
        "stream's max_msg_size": {"max_msg_size": STREAM_LIMIT},
    }.items():
        with world(stream_settings=settings) as on:
            found = played(on, settings.get("max_msg_size"))
        say(f"{name}: {found}")
        measured[name] = found
        good = good and found.pop("good")
    return Outcome(good, measured)


def played(on: World, stream_limit: int | None) -> dict[str, Any]:
    """One world: the door, the probe that tells how large headers are, then the sizes."""
    probe = publish(on, b'"probe"', key="large-probe")  # its headers are as long as theirs
    with on.relay():
        on.quiesce()
    headers = asyncio.run(header_bytes(on))
    wrong = at_the_door(on) if stream_limit is None else []
    limit = stream_limit or largest(asyncio.run(max_payload(on)))
    sizes = {"limit - 1": limit - 1, "limit": limit, "limit + 1": limit + 1, "50 MB": HUGE}
    if stream_limit is None:  # our reserve lies between these two
        sizes["max_payload"] = asyncio.run(max_payload(on))
        sizes["max_payload + 1"] = sizes["max_payload"] + 1
    large: dict[str, str] = {}
    with on.relay():
        for name, size in sizes.items():
            small(on)
            body = b'"' + b"x" * (size - headers - 2) + b'"'
            large[name] = publish(on, body, key=f"large-{len(large):05}")
            small(on)
        too_large = {name for name, size in sizes.items() if size > limit}
        seconds = on.quiesce(parked=len(too_large))
    dead = {large[name] for name in too_large}
    keys = {f"large-{list(large).index(name):05}" for name in too_large}
    violations, counts = on.check(dead=dead, parked=keys)
    graves = dead_letters(on)
    for name in too_large:
        code, attempts = graves.get(large[name], ("none", 0))
        if code != "too_large" or attempts > 1:
            wrong.append(f"{name}: {code} after {attempts} attempts")
    return {
        "good": not wrong and not violations and not counts["delivered twice"] and bool(probe),
        "bytes of headers": headers,
        "limit of body and headers": limit,
        "dead as too_large": sorted(too_large),
        "attempts at most": max((attempts for _, attempts in graves.values()), default=0),
        "seconds until at rest": seconds,
        **counts,
        "first violations": [*wrong, *told(violations)][:20],
    }


def at_the_door(on: World) -> list[str]:
    """Around `max_body`; the transaction of what is refused commits what else is in it."""
    wrong = []
    for size in (MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, HUGE):
        body = b'"' + b"x" * (size - 2) + b'"'
        with Session(on.database.engine) as session, session.begin():
            on.publish(session, b'"before"', key="door")
            try:
                on.publish(session, body, key=f"door-{size}")
            except MessageRefused as error:
                if size <= MAX_BODY or error.path != "$":
                    wrong.append(f"{size} bytes: {error}")
            else:
                if size > MAX_BODY:
                    wrong.append(f"{size} bytes passed the door")
            on.publish(session, b'"after"', key="door")
    return wrong


def publish(on: World, body: bytes, key: str) -> str:
    """In a transaction of its own, past the door."""
    with Session(on.database.engine) as session, session.begin():
        return on.publish(session, body, key=key, max_body=2 * HUGE)


def small(on: World) -> None:
    """Messages of other keys."""
    with Session(on.database.engine) as session, session.begin():
        for number in range(SMALL_KEYS * SMALL_EACH):
            on.publish(session, b'{"n":%d}' % number, key=f"small-{number % SMALL_KEYS}")


def dead_letters(on: World) -> dict[str, tuple[str, int]]:
    """Each one's code and attempts."""
    table = on.database.tables.dead_letter
    with on.database.engine.connect() as connection:
        return {
            str(row.id): (row.error_code, row.attempts)
            for row in connection.execute(
                sa.select(table.c.id, table.c.error_code, table.c.attempts)
            )
        }


async def header_bytes(on: World) -> int:
    """How many bytes of headers the latest message has, as the server stored them."""
    client = await nats.connect(on.nats.url)
    try:
        latest = (await client.jetstream().stream_info(NAME)).state.last_seq
        answer = await client.request(
            f"$JS.API.STREAM.MSG.GET.{NAME}", json.dumps({"seq": latest}).encode()
        )
        return len(base64.b64decode(json.loads(answer.data)["message"]["hdrs"]))
    finally:
        await client.close()


async def max_payload(on: World) -> int:
    """As the server tells its clients."""
    client = await nats.connect(on.nats.url)
    try:
        return client.max_payload
    finally:
        await client.close()
