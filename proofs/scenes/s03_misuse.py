"""3: publishing where no commit can follow is a clear error, and nothing is written.

In AUTOCOMMIT, however it was set; before a transaction, after its end, and in hooks that run after
the COMMIT. After each refusal the caller goes on and publishes as one should: that one arrives.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_saga.errors import (
    AutocommitRefused,
    MessagesLeftOut,
    NoTransaction,
    OutboxSagaError,
    PublishRefused,
)
from outbox_saga.unit_of_work import UnitOfWork
from proofs.registry import Outcome
from proofs.scenes.shops import shop_on
from proofs.scenes.world import World, intended, told, world
from tests.write_path.shop import Order, Said, Shop
from tests.write_path.test_autocommit import ASYNC_ENGINES, ENGINES

Refusals = type[OutboxSagaError] | tuple[type[OutboxSagaError], ...]
AFTER_COMMIT: Refusals = (NoTransaction, MessagesLeftOut)
LEVELS = ("instance", "sessionmaker", "class, first", "class, last")


@dataclass
class Stage:
    """What was refused, and what was not and should have been."""

    on: World
    shop: Shop
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def say(self, session: Any, word: str = "refused") -> str:
        """Publish without any intent: nothing of it may ever arrive."""
        return str(UnitOfWork(session).publish(Said(word=word)))

    def said_well(self, session: Any) -> sa.Insert:
        """As one should; what is returned has to be executed in the same transaction."""
        return intended(self.say(session, "well"), None, b'{"word":"well"}')

    @contextmanager
    def refuses(self, what: str, kinds: Refusals) -> Iterator[None]:
        """The block raises one of these, which says what to do, and writes nothing of ours."""
        before = self.written()
        try:
            yield
        except PublishRefused as error:
            clear = isinstance(error, kinds) and len(str(error)) > 20 and " " in str(error)
            if not clear:
                self.wrong.append(f"{what}: {type(error).__name__}: {error}")
            self.refused[type(error).__name__] += 1
        else:
            self.wrong.append(f"{what}: was not refused")
        if self.written() != before:
            self.wrong.append(f"{what}: something was written")

    def written(self) -> int:
        """Rows in the outbox, as another connection sees them."""
        return len(self.shop.rows())


def show() -> Outcome:
    """All kinds of misuse, then the relay."""
    with world() as on:
        with shop_on(on) as shop:
            stage = Stage(on, shop)
            autocommit(stage)
            no_transaction(stage)
            for level, alone in itertools.product(LEVELS, (True, False)):
                after_commit(stage, level, alone=alone)
            under_way(stage)
            asyncio.run(asynchronous(stage))
            rows = shop.notes()
        with on.relay():
            seconds = on.quiesce()
        violations, counts = on.check()
    return Outcome(
        not violations and not stage.wrong and "aborted" not in rows,
        {
            "refused": dict(stage.refused),
            "business rows committed": len(rows),
            "seconds until at rest": seconds,
            **counts,
            "first violations": [*stage.wrong, *told(violations)][:20],
        },
    )


def autocommit(stage: Stage) -> None:
    """Set on the engine, by options, by the driver; before and after SQL; on both kinds."""
    for (way, make), sql in itertools.product(ENGINES.items(), (False, True)):
        engine = make(stage.shop)
        with Session(engine) as session, session.begin():
            session.add(Order(note="row"))
            if sql:
                session.flush()
            with stage.refuses(f"Session, AUTOCOMMIT by {way}, sql: {sql}", AutocommitRefused):
                stage.say(session)
        with engine.begin() as connection:
            if sql:
                connection.execute(sa.text("select 1"))
            with stage.refuses(f"Connection, AUTOCOMMIT by {way}, sql: {sql}", AutocommitRefused):
                stage.say(connection)


def no_transaction(stage: Stage) -> None:
    """Before it has begun, after commit, rollback and close; then as one should."""
    engine = stage.shop.engine
    registry = scoped_session(sessionmaker(engine))
    for session in (Session(engine), registry):
        kind = type(session).__name__
        with stage.refuses(f"{kind}, before it begins", NoTransaction):
            stage.say(session)
        ends: dict[str, Callable[[], None]] = {
            "commit": session.commit,
            "rollback": session.rollback,
            "close": session.close,
        }
        for name, end in ends.items():
            session.add(Order(note="row"))
            session.flush()
            end()
            with stage.refuses(f"{kind}, after {name}", NoTransaction):
                stage.say(session)
            session.begin()
            session.execute(stage.said_well(session))
            session.commit()
        session.close()
    with engine.connect() as connection:
        with stage.refuses("Connection, before it begins", NoTransaction):
            stage.say(connection)
        for end in (connection.commit, connection.rollback):
            connection.execute(sa.text("select 1"))
            end()
            with stage.refuses(f"Connection, after {end.__name__}", NoTransaction):
                stage.say(connection)
            connection.begin()
            connection.execute(stage.said_well(connection))
            connection.commit()


def after_commit(stage: Stage, level: str, *, alone: bool) -> None:
    """In an after_commit hook, wherever it was registered, with and without another message."""
    maker = sessionmaker(stage.shop.engine)
    with maker() as session:
        target: Any = {"instance": session, "sessionmaker": maker}.get(level, Session)

        def hook(_: Session) -> None:
            stage.say(session)

        session.add(Order(note="row"))
        session.flush()
        if not alone:
            session.execute(stage.said_well(session))
        # what the transaction itself published is written by now: look before it is
        refusal: list[PublishRefused] = []
        event.listen(target, "after_commit", hook, insert="first" in level)
        try:
            session.commit()
        except PublishRefused as error:
            refusal.append(error)
        finally:
            event.remove(target, "after_commit", hook)
        session.close()
    with stage.refuses(f"after_commit hook, {level}, alone: {alone}", AFTER_COMMIT):
        for refused in refusal:
            raise refused


def under_way(stage: Stage) -> None:
    """While the engine's own commit event runs: the commit is aborted, and nothing leaves."""
    late: list[Any] = []

    def publish(_: sa.Connection) -> None:
        if late:
            stage.say(late.pop())

    event.listen(stage.shop.engine, "commit", publish)
    with Session(stage.shop.engine) as session:
        session.add(Order(note="aborted"))
        session.execute(stage.said_well(session))
        late.append(session)
        with stage.refuses("in the engine's commit event", MessagesLeftOut):
            session.commit()
        session.rollback()
    event.remove(stage.shop.engine, "commit", publish)


async def asynchronous(stage: Stage) -> None:
    """The same on an AsyncSession and an AsyncConnection."""
    for way, make in ASYNC_ENGINES.items():
        engine = make(stage.shop)
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(note="row"))
            await session.flush()
            with stage.refuses(f"AsyncSession, AUTOCOMMIT by {way}", AutocommitRefused):
                stage.say(session)
        async with AsyncSession(engine) as session:
            await session.begin()
            session.add(Order(note="row"))
            with stage.refuses(
                f"AsyncSession without SQL, AUTOCOMMIT by {way}", AutocommitRefused
            ):
                stage.say(session)
                await session.commit()
            await session.rollback()
        async with engine.begin() as connection:
            with stage.refuses(f"AsyncConnection, AUTOCOMMIT by {way}", AutocommitRefused):
                stage.say(connection)
        await engine.dispose()
    engine = stage.shop.make_async_engine()
    try:
        await no_async_transaction(stage, engine)
    finally:
        await engine.dispose()


async def no_async_transaction(stage: Stage, engine: AsyncEngine) -> None:
    """Before it has begun, after its end, and in its after_commit hook."""
    async with AsyncSession(engine) as session:
        with stage.refuses("AsyncSession, before it begins", NoTransaction):
            stage.say(session)
        for end in (session.commit, session.rollback):
            session.add(Order(note="row"))
            await session.flush()
            await end()
            with stage.refuses(f"AsyncSession, after {end.__name__}", NoTransaction):
                stage.say(session)
            await session.begin()
            await session.execute(stage.said_well(session))
            await session.commit()

        def hook(inner: Session) -> None:
            stage.say(inner)

        event.listen(session.sync_session, "after_commit", hook)
        session.add(Order(note="row"))
        with stage.refuses("after_commit hook of an AsyncSession", AFTER_COMMIT):
            await session.commit()
    unstarted = engine.connect()
    with stage.refuses("AsyncConnection, not started", NoTransaction):
        stage.say(unstarted)
    async with engine.connect() as connection:
        with stage.refuses("AsyncConnection, before it begins", NoTransaction):
            stage.say(connection)
