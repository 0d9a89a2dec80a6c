"""2: what a nested block that is rolled back has published never arrives; the rest does.

The shapes, and by hand what must come of each, are those of the write path's own tests. Each runs
on a Session, a Connection and their async kinds; a relay and NATS tell what arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.unit_of_work import UnitOfWork
from proofs.registry import Outcome
from proofs.scenes.shops import shop_on
from proofs.scenes.world import World, intended, told, world
from tests.write_path.programs import (
    run_async_connection,
    run_async_session,
    run_connection,
    run_session,
)
from tests.write_path.shop import Order, Said, Shop
from tests.write_path.test_savepoints import SESSION_SHAPES, SHAPES


class _Undone(Exception):
    """The nested block fails."""


@dataclass
class Stage:
    """What is published here, by whom, and what of it must arrive."""

    on: World
    shop: Shop
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    played: Counter[str] = field(default_factory=Counter)

    def say(self, session: Any, word: object) -> None:
        """Publish one word, and remember its id."""
        self.said.append(str(UnitOfWork(session).publish(Said(word=str(word)))))

    def expect(self, kind: str, shape: str, words: str, notes: str) -> None:
        """Of what was said since the last call these words must arrive, and no other."""
        self.played[kind] += 1
        if self.shop.notes() != list(notes):
            self.wrong.append(f"{kind}, {shape}: rows {self.shop.notes()}, must be {list(notes)}")
        with self.on.database.begin() as connection:
            for word in words:
                body = b'{"word":"%s"}' % word.encode()
                connection.execute(intended(self.said[int(word)], None, body))
        self.said.clear()
        self.shop.execute("delete from shop_order")


def show() -> Outcome:
    """All shapes, then the relay."""
    with world() as on:
        with shop_on(on) as shop:
            stage = Stage(on, shop)
            play(stage)
            asyncio.run(play_async(stage))
        with on.relay():
            seconds = on.quiesce()
        violations, counts = on.check()
    return Outcome(
        not violations and not stage.wrong and len(stage.played) == 4,
        {
            "transactions": dict(stage.played),
            "seconds until at rest": seconds,
            **counts,
            "first violations": [*stage.wrong, *told(violations)][:20],
        },
    )


def play(stage: Stage) -> None:
    """On a Session and on a Connection."""
    with Session(stage.shop.engine) as session, session.begin():
        session.add(Order(note="0"))
        stage.say(session, 0)
        with contextlib.suppress(_Undone), session.begin_nested():
            session.add(Order(note="1"))
            stage.say(session, 1)
            raise _Undone
    stage.expect("Session", "a nested block that raises", "0", "0")
    for name, (program, words, notes) in (SHAPES | SESSION_SHAPES).items():
        run_session(stage.shop, program, stage.say)
        stage.expect("Session", name, words, notes)
    for name, (program, words, notes) in SHAPES.items():
        run_connection(stage.shop, program, stage.say)
        stage.expect("Connection", name, words, notes)


async def play_async(stage: Stage) -> None:
    """On an AsyncSession and on an AsyncConnection."""
    engine = stage.shop.make_async_engine()
    try:
        await nested_block_raises(engine, stage)
        for name, (program, words, notes) in (SHAPES | SESSION_SHAPES).items():
            await run_async_session(engine, program, stage.say)
            stage.expect("AsyncSession", name, words, notes)
        for name, (program, words, notes) in SHAPES.items():
            await run_async_connection(engine, program, stage.say)
            stage.expect("AsyncConnection", name, words, notes)
    finally:
        await engine.dispose()


async def nested_block_raises(engine: AsyncEngine, stage: Stage) -> None:
    """The scenario to the letter."""
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(note="0"))
        stage.say(session, 0)
        with contextlib.suppress(_Undone):
            async with session.begin_nested():
                session.add(Order(note="1"))
                stage.say(session, 1)
                raise _Undone
    stage.expect("AsyncSession", "a nested block that raises", "0", "0")
