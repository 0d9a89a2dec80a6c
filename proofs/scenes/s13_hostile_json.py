"""13: hostile JSON is refused with the path of what is wrong, or carried unchanged.

The corpus and the values are those of the write path's own tests. After each refusal the caller's
transaction commits: the business row of each is there, and a message that was published in it
arrives. What is not refused is compared with what a NATS subscriber of ours gets.
"""

from __future__ import annotations

import asyncio
import decimal
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.brokers import Delivery, Subscription, open_subscriber
from outbox_saga.errors import MessageRefused
from outbox_saga.unit_of_work import UnitOfWork
from proofs.registry import Outcome
from proofs.scenes.world import QUIESCE, TOPIC, World, intended, told, world
from tests.write_path.bad_inputs import Anything, Bad, corpus
from tests.write_path.test_bytes_arrive import BODIES, BYTES, KEYS, VALUES

# What the scenario names -> how many of the corpus are about it, or carried.
NAMED = {
    "NUL": "NUL",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "lone surrogates": "surrogate",
    "100,000-deep arrays": "100,000 lists",
    "5,000-digit ints": "5,000 digits",
    "duplicate keys": "a key twice",
    "non-string keys": "a key that is",
    "bytes": "bytes that are not UTF-8",
    "cyclic object": "is a loop",
}


@dataclass
class Stage:
    """What was refused and what was not."""

    on: World
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)  # message id -> what was published
    keys: dict[str, str | None] = field(default_factory=dict)

    def judge(self, kind: str, bad: Bad, error: MessageRefused | None) -> None:
        """Whether it was refused, and with the right path."""
        if error is None:
            self.wrong.append(f"{kind}, {bad.name}: was not refused")
        elif error.path not in (bad.path, bad.path + bad.turn) or not error.reason:
            self.wrong.append(f"{kind}, {bad.name}: {error.path}, not {bad.path}")
        elif len(str(error)) > 1000:
            self.wrong.append(f"{kind}, {bad.name}: the refusal repeats the payload")
        else:
            self.refused[kind] += 1


def show() -> Outcome:
    """Refusals on each kind of session, then what is carried, then the relay."""
    bad = corpus()
    with world() as on:
        stage = Stage(on)
        in_sessions(stage, bad)
        asyncio.run(in_async_sessions(stage, bad))
        carried(stage)
        with on.relay():
            seconds = on.quiesce()
        violations, counts = on.check()
        got = asyncio.run(subscribed(on, counts["delivered"]))
    compared = compare(stage, got)
    about = {what: sum(word in one.name for one in bad) for what, word in NAMED.items()}
    complete = all(about.values()) and compared["Decimal"] == 2
    return Outcome(
        not violations and not stage.wrong and complete,
        {
            "corpus": len(bad),
            "about": about,
            "refused": dict(stage.refused),
            "carried": compared,
            "seconds until at rest": seconds,
            **counts,
            "first violations": [*stage.wrong, *told(violations)][:20],
        },
    )


def in_sessions(stage: Stage, bad: list[Bad]) -> None:
    """Each in a transaction of its own on a Session, then all in one on a Connection."""
    for one in bad:
        with Session(stage.on.database.engine) as session, session.begin():
            stage.judge("Session", one, refusal(one, session))
            session.execute(sa.text("select 1"))
            stage.on.publish(session, b'"after"')
    with stage.on.database.begin() as connection:
        for one in bad:
            stage.judge("Connection", one, refusal(one, connection))
            stage.on.publish(connection, b'"after"')


async def in_async_sessions(stage: Stage, bad: list[Bad]) -> None:
    """Each in a transaction of its own on an AsyncSession."""
    async with AsyncSession(stage.on.database.async_engine) as session:
        for one in bad:
            await session.begin()
            stage.judge("AsyncSession", one, refusal(one, session))
            id_ = UnitOfWork(session).publish_body(b'"after"', topic="talk", type="Said")
            await session.execute(intended(id_, None, b'"after"'))
            await session.commit()
    await stage.on.database.close()


def refusal(bad: Bad, session: Any) -> MessageRefused | None:
    """With which it was refused."""
    try:
        bad.publish(session)
    except MessageRefused as error:
        return error
    return None


def carried(stage: Stage) -> None:
    """Bodies, values and keys that are odd, and may pass."""
    with Session(stage.on.database.engine) as session, session.begin():
        for key in KEYS:
            stage.keys[stage.on.publish(session, b'{"key":true}', key=key)] = key
        for body in BODIES:
            stage.keys[stage.on.publish(session, body)] = None
        every = bytes(range(256))
        for body in (b"", b"\x00", every, every * 1024):
            stage.keys[stage.on.publish(session, body, content_type=BYTES)] = None
    # Decimal and bytes that are UTF-8 have a JSON form: text
    for value in (*VALUES, decimal.Decimal("1e400"), decimal.Decimal("0.10"), b"text"):
        with Session(stage.on.database.engine) as session, session.begin():
            message = Anything(value=value)
            id_ = UnitOfWork(session).publish(message)
            stage.values[str(id_)] = value
            session.execute(intended(id_, None, message.to_body()))


async def subscribed(on: World, count: int) -> dict[str, tuple[str | None, bytes]]:
    """What a subscriber gets of so many messages: of each id the key and the body."""
    got: dict[str, tuple[str | None, bytes]] = {}
    complete = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        envelope = delivery.envelope
        got[str(envelope.id)] = (envelope.key, envelope.body)
        await delivery.acknowledge()
        if len(got) == count:
            complete.set()

    subscriber = open_subscriber(on.broker_url, Subscription("reader", (TOPIC,)))
    await subscriber.open()
    try:
        async with asyncio.timeout(QUIESCE):
            await subscriber.run(handle, complete.wait)
    finally:
        await subscriber.close()
    return got


def compare(stage: Stage, got: dict[str, tuple[str | None, bytes]]) -> dict[str, int]:
    """How many values and keys came back as they were; the rest is wrong."""
    same = Counter[str]()
    for id_, value in stage.values.items():
        read = json.loads(got[id_][1])["value"] if id_ in got else "nothing"
        wanted = str(value) if isinstance(value, decimal.Decimal) else value
        wanted = value.decode() if isinstance(value, bytes) else wanted
        if read == wanted:
            same["Decimal" if isinstance(value, decimal.Decimal) else "values"] += 1
        else:
            stage.wrong.append(f"{value!r:.80} arrived as {read!r:.80}")
    for id_, key in stage.keys.items():
        if id_ in got and got[id_][0] == key:
            same["bodies and keys"] += 1
        else:
            stage.wrong.append(f"key {key!r} arrived as {got.get(id_, ('nothing',))[0]!r}")
    return dict(same)
