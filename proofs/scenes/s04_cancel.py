"""4: code that writes and publishes on an AsyncSession is cancelled at each of its suspensions.

Whatever comes of it: business row and message are both there or both not; what is reported is
true, and a cancelled COMMIT that may have happened is reported as unknown; no connection is left
out of the pool, no transaction open.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox_saga import async_commit_outcome, retry_unit
from outbox_saga.commits import interrupted_commit
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.handler_context import HandlerContext
from outbox_saga.inbox import handle_once
from outbox_saga.service import Service
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from outbox_saga.worker_threads import WorkerThreads
from proofs.registry import Outcome, say
from proofs.scenes.world import World, intended, told, world
from tests.write_path.cancelling import MOMENTS, CancelledAt, Moment
from tests.write_path.shop import Said

KEY = "one key, whose lock would be held by what is left open"
CONSUMER = "till"
MOST = 200  # suspensions that no run comes near
SETTLE = 5.0  # seconds within which the server must have ended what was cut off
_OPEN = sa.text(
    "select count(*) from pg_stat_activity where datname = current_database() "
    "and pid <> pg_backend_pid() and backend_type = 'client backend' "
    "and (state like 'idle in transaction%' or state = 'active')"
)


@dataclass
class Stage:
    """The database, and what was found."""

    on: World
    look: sa.Engine  # not the pool that is tried
    threads: WorkerThreads
    runs: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    ids: dict[int, UUID] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)  # whose own `commit()` has returned

    @property
    def database(self) -> Database:
        """As service code has it."""
        return self.on.database

    def make(self) -> async_sessionmaker[AsyncSession]:
        """Of the pool that is tried."""
        return async_sessionmaker(self.database.async_engine)


Work = Callable[[Stage, int], Awaitable[object]]


async def write(stage: Stage, uow: UnitOfWork[AsyncSession], number: int) -> None:
    """Reads, writes, publishes; the intent is the business row."""
    body = b'{"word":"%d"}' % number
    id_ = uow.publish(Said(word=str(number)), key=KEY)
    stage.ids[number] = id_
    await uow.session.execute(sa.text("select 1"))
    await uow.session.execute(intended(id_, KEY, body))


async def block(stage: Stage, number: int) -> None:
    """`async with unit_of_work(...)`."""
    async with unit_of_work(stage.make()) as uow:
        await write(stage, uow, number)


async def of_a_service(stage: Stage, number: int) -> None:
    """`async with service.unit_of_work()`."""
    service = Service("shop", database=stage.database)
    async with service.unit_of_work() as uow:
        await write(stage, uow, number)


async def own_session(stage: Stage, number: int) -> None:
    """A session life cycle of their own."""
    async with AsyncSession(stage.database.async_engine) as session:
        await session.begin()
        await write(stage, UnitOfWork(session), number)
        await session.commit()
        stage.returned.add(number)


async def begun(stage: Stage, number: int) -> None:
    """As SQLAlchemy's documentation writes it."""
    async with stage.make().begin() as session:
        await write(stage, UnitOfWork(session), number)


async def retried(stage: Stage, number: int) -> None:
    """`retry_unit`."""
    await retry_unit(stage.make(), lambda uow: write(stage, uow, number))


async def handled(stage: Stage, number: int) -> None:
    """A handler of the inbox."""

    async def handler(context: HandlerContext[Said]) -> None:
        body = b'{"word":"%d"}' % number
        id_ = context.publish(Said(word=str(number)), key=KEY)
        stage.ids[number] = id_
        await context.session.execute(sa.text("select 1"))
        await context.session.execute(intended(id_, KEY, body))

    await handle_once(
        stage.database, stage.threads, CONSUMER, arriving(number), Said, handler, source="shop"
    )


def arriving(number: int) -> Envelope:
    """The message that makes the handler run: the same one each time."""
    envelope = seal(Said(word=f"in {number}"))
    return Envelope(**{**_fields(envelope), "id": UUID(int=number)})


def _fields(envelope: Envelope) -> dict[str, Any]:
    return {name: getattr(envelope, name) for name in Envelope.__slots__}


WAYS: dict[str, Work] = {
    "unit_of_work": block,
    "Service.unit_of_work": of_a_service,
    "own session": own_session,
    "sessionmaker.begin": begun,
    "retry_unit": retried,
    "handler": handled,
}


def show() -> Outcome:
    """Each way, each moment, a pool with a connection and one without, each suspension."""
    with world() as on:
        look = sa.create_engine(on.url, pool_size=1)
        stage = Stage(on, look, WorkerThreads(1, "handlers"))
        try:
            suspensions = asyncio.run(everything(stage))
        finally:
            stage.threads.shutdown()
            look.dispose()
        with on.relay():
            seconds = on.quiesce()
        violations, counts = on.check()
    happened = (
        stage.runs["cancelled, unknown, committed"] and stage.runs["cancelled, not committed"]
    )
    return Outcome(
        not violations and not stage.wrong and bool(happened),
        {
            "suspensions": suspensions,
            "runs": dict(stage.runs),
            "seconds until the server had ended the slowest": round(stage.slowest, 3),
            "seconds until at rest": seconds,
            **counts,
            "first violations": [*stage.wrong, *told(violations)][:80],
        },
    )


async def everything(stage: Stage) -> dict[str, int]:
    """How many suspensions each had."""
    found: dict[str, int] = {}
    number = 0
    for way, work in WAYS.items():
        for moment in MOMENTS:
            for warm in (True, False):
                at = 0
                while at < MOST:
                    number += 1
                    at += 1
                    await (warmed(stage) if warm else stage.database.async_engine.dispose())
                    name = f"{way}, {moment}, {'warm' if warm else 'cold'} pool, suspension {at}"
                    if not await once(stage, name, work, number, at, moment):
                        break
                found[f"{way}, {'warm' if warm else 'cold'} pool"] = at - 1
        say(f"{way}: {dict(stage.runs)}")
    await stage.database.close()
    return found


async def warmed(stage: Stage) -> None:
    """A connection waits in the pool."""
    async with stage.database.async_engine.connect() as connection:
        await connection.execute(sa.text("select 1"))


async def once(stage: Stage, name: str, work: Work, number: int, at: int, moment: Moment) -> bool:
    """Whether it had so many suspensions: it was cancelled there, and looked at afterwards."""
    coroutine: Any = work(stage, number)
    run = CancelledAt(coroutine, at, moment)
    error: BaseException | None = None

    async def life() -> BaseException | None:
        try:
            await run
        except BaseException as raised:  # noqa: BLE001 - what service code would see
            return raised
        return None

    error = await asyncio.create_task(life())
    await at_rest(stage, name)
    unknown = None if error is None else interrupted_commit(error)
    committed = is_committed(stage, name, number)
    if error is None:
        outcome = "returned"
        if not committed:
            stage.wrong.append(f"{name}: returned, and is not committed")
    elif not isinstance(error, asyncio.CancelledError) and unknown is None:
        outcome = type(error).__name__
        stage.wrong.append(f"{name}: {type(error).__name__}: {error}")
    elif unknown is not None:
        outcome = f"cancelled, unknown, {'committed' if committed else 'rolled back'}"
        answer = await async_commit_outcome(stage.database.async_engine, unknown)
        if answer is not committed:
            stage.wrong.append(f"{name}: is committed: {committed}, the database says {answer}")
    else:
        outcome = f"cancelled, {'' if committed else 'not '}committed"
        if committed and work is begun:
            outcome += " by SQLAlchemy's own block"  # it finishes what it was cancelled in
        elif committed and work is not handled and number not in stage.returned:
            stage.wrong.append(f"{name}: committed, and nobody was told that it may be")
    if work is handled:
        outcome = f"handler {outcome}"
        await handled(stage, number)  # it is delivered again
        if not is_committed(stage, f"{name}, delivered again", number):
            stage.wrong.append(f"{name}: delivered again, and not handled")
    stage.runs[outcome] += run.done
    return run.done


async def at_rest(stage: Stage, name: str) -> None:
    """No connection is out, and the server holds no transaction open."""
    began = time.monotonic()
    pool: Any = stage.database.async_engine.sync_engine.pool
    while True:
        with stage.look.connect() as connection:
            left = connection.execute(_OPEN).scalar_one()
        out = pool.checkedout()
        waited = time.monotonic() - began
        if (not left and not out) or waited > SETTLE:
            break
        await asyncio.sleep(0.005)
    stage.slowest = max(stage.slowest, waited)
    if left or out:
        stage.wrong.append(f"{name}: {out} connections out of the pool, {left} sessions open")


def is_committed(stage: Stage, name: str, number: int) -> bool:
    """Whether it is; business row, message and inbox row tell the same."""
    tables = stage.database.tables
    with stage.look.connect() as connection:
        business = connection.execute(
            sa.text("select count(*) from scene_intent where body = :body"),
            {"body": b'{"word":"%d"}' % number},
        ).scalar_one()
        messages = connection.execute(
            sa.select(sa.func.count())
            .select_from(tables.outbox)
            .where(tables.outbox.c.body == b'{"word":"%d"}' % number)
        ).scalar_one()
    if business != messages or business > 1:
        stage.wrong.append(f"{name}: {business} business rows, {messages} messages")
    return bool(business)
