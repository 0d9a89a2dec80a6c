"""18: 40001, 40P01, 55P03 and 57P01 at each statement of a unit: all of it is run again, once.

Raised by the server in place of each statement and of COMMIT, under a message in another
language; sessions that are ended before and after each; and real ones, among eight writers at
once (`strife`), on PostgreSQL 18 and on a server that speaks Russian where there is one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga import async_commit_outcome, commit_outcome, retry_unit
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import CommitUnknown
from outbox_saga.handler_context import HandlerContext, SyncHandlerContext
from outbox_saga.inbox import handle_once
from outbox_saga.queries.dialects import is_transient
from outbox_saga.retries import Retry
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.worker_threads import WorkerThreads
from proofs.registry import Outcome, say
from proofs.scenes import strife
from proofs.scenes.injection import How, Injection, prepare
from proofs.scenes.world import World, intended, told, world
from tests.write_path.shop import Said

CODES = ("40001", "40P01", "55P03", "57P01")
TROUBLES: list[tuple[How, str | None]] = [
    *(("raised", code) for code in CODES),
    ("ended before", None),
    ("ended after", None),
]
RETRY = Retry(max_attempts=3, initial=0.001, max_delay=0.01)
KEY = "counter"
_EFFECT = sa.text("insert into scene_effect (number) values (:number)")


@dataclass
class Stage:
    """One database, whose engines have the seam, and what was found."""

    on: World
    look: sa.Engine
    threads: WorkerThreads
    runs: Counter[str] = field(default_factory=Counter)
    statements: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    number: int = 0
    attempts: int = 0


def show() -> Outcome:
    """Injected troubles, then real ones."""
    measured: dict[str, Any] = {}
    with world(pool_size=2) as on:
        look = sa.create_engine(on.url)
        stage = Stage(on, look, WorkerThreads(1, "handlers"))
        with look.begin() as connection:
            connection.exec_driver_sql("create table scene_counter (n int)")
            connection.exec_driver_sql("insert into scene_counter values (0)")
            connection.exec_driver_sql("create table scene_effect (number int)")
        prepare(look)
        try:
            injected(stage, "unit, Session", unit(stage), Injection(on.database.engine, look))
            asyncio.run(injected_async(stage))
        finally:
            stage.threads.shutdown()
            look.dispose()
        with on.relay():
            seconds = on.quiesce()
        violations, counts = on.check()
    measured["injected"] = {
        "statements": stage.statements,
        "runs": dict(stage.runs),
        "attempts at most": 2,
        "seconds until at rest": seconds,
        **counts,
        "first violations": [*stage.wrong, *told(violations)][:20],
    }
    good = not violations and not stage.wrong
    say(f"injected: {measured['injected']}")
    for name, found in strife.everywhere():
        say(f"{name}: {found}")
        measured[name] = found
        good = good and not found["first violations"]
    return Outcome(good, measured)


# --- what is run again ---------------------------------------------------------------------------


def unit(stage: Stage) -> Any:
    """`retry_unit` with a sessionmaker."""

    def work(uow: UnitOfWork[Session]) -> int:
        stage.attempts += 1
        count = uow.session.execute(sa.text("select n from scene_counter for update")).scalar_one()
        uow.session.execute(sa.text("update scene_counter set n = :n"), {"n": count + 1})
        uow.session.execute(_EFFECT, {"number": stage.number})
        id_ = uow.publish(Said(word=str(stage.number)), key=KEY)
        uow.session.execute(intended(id_, KEY, b'{"word":"%d"}' % stage.number))
        return stage.number

    def run() -> None:
        value = retry_unit(
            sessionmaker(stage.on.database.engine), work, retry=RETRY, resolve=resolve
        )
        if value != stage.number:
            stage.wrong.append(f"unit {stage.number} returned {value}")

    def resolve(unknown: CommitUnknown) -> bool:
        answer = commit_outcome(stage.look, unknown)
        assert answer is not None
        return answer

    return run


def async_unit(stage: Stage) -> Any:
    """`retry_unit` with an async_sessionmaker."""

    async def work(uow: UnitOfWork[AsyncSession]) -> int:
        stage.attempts += 1
        read = await uow.session.execute(sa.text("select n from scene_counter for update"))
        await uow.session.execute(
            sa.text("update scene_counter set n = :n"), {"n": read.scalar_one() + 1}
        )
        await uow.session.execute(_EFFECT, {"number": stage.number})
        id_ = uow.publish(Said(word=str(stage.number)), key=KEY)
        await uow.session.execute(intended(id_, KEY, b'{"word":"%d"}' % stage.number))
        return stage.number

    async def resolve(unknown: CommitUnknown) -> bool:
        answer = await async_commit_outcome(stage.on.database.async_engine, unknown)
        assert answer is not None
        return answer

    async def run() -> None:
        make = async_sessionmaker(stage.on.database.async_engine)
        await retry_unit(make, work, retry=RETRY, resolve=resolve)

    return run


def handler(stage: Stage, *, in_thread: bool) -> Any:
    """A handler: the broker delivers its message again, as long as it was not handled."""

    def published(context: Any) -> sa.Insert:
        stage.attempts += 1
        id_ = context.publish(Said(word=str(stage.number)), key=KEY)
        return intended(id_, KEY, b'{"word":"%d"}' % stage.number)

    async def in_task(context: HandlerContext[Said]) -> None:
        row = published(context)
        await context.session.execute(sa.text("update scene_counter set n = n + 1"))
        await context.session.execute(_EFFECT, {"number": stage.number})
        await context.session.execute(row)

    def plain(context: SyncHandlerContext[Said]) -> None:
        row = published(context)
        context.session.execute(sa.text("update scene_counter set n = n + 1"))
        context.session.execute(_EFFECT, {"number": stage.number})
        context.session.execute(row)

    async def run() -> None:
        message = arriving(stage.number)
        for _ in range(RETRY.max_attempts):
            try:
                await handle_once(
                    stage.on.database,
                    stage.threads,
                    "till",
                    message,
                    Said,
                    plain if in_thread else in_task,
                    source="shop",
                )
            except Exception as error:
                if not is_transient(error):
                    raise
            else:
                return

    return run


def arriving(number: int) -> Envelope:
    """The message that the handler of this number gets, the same each time."""
    sealed = seal(Said(word="in"))
    fields = {name: getattr(sealed, name) for name in Envelope.__slots__}
    return Envelope(**{**fields, "id": UUID(int=number)})


# --- where ---------------------------------------------------------------------------------------


def injected(stage: Stage, name: str, run: Any, injection: Injection) -> None:
    """Once without trouble, which tells how many statements there are; then each, at each."""
    with asyncio.Runner() as runner:

        async def once() -> None:
            run()

        runner.run(_injected(stage, name, once, injection))


async def injected_async(stage: Stage) -> None:
    """The kinds that need a loop."""
    database = stage.on.database
    sync = Injection(database.engine, stage.look)
    injection = Injection(database.async_engine.sync_engine, stage.look)
    await _injected(stage, "unit, AsyncSession", async_unit(stage), injection)
    await _injected(stage, "async handler", handler(stage, in_thread=False), injection)
    await _injected(stage, "plain handler", handler(stage, in_thread=True), sync)
    await database.close()


async def _injected(stage: Stage, name: str, run: Any, injection: Injection) -> None:
    for warming in range(2):  # the first connects, and asks the server who it is
        await _once(stage, f"{name}, undisturbed {warming}", run, injection, 0, "raised", None)
    places = injection.places
    stage.statements[name] = places
    for (how, code), at in itertools.product(TROUBLES, range(1, len(places) + 1)):
        where = f"{name}, {code or how} at {at} ({places[at - 1]})"
        await _once(stage, where, run, injection, at, how, code)


async def _once(
    stage: Stage, name: str, run: Any, injection: Injection, at: int, how: How, code: str | None
) -> None:
    stage.number += 1
    stage.attempts = 0
    before = total(stage)
    injection.arm(at, how, code)
    try:
        await run()
    except Exception as error:  # noqa: BLE001 - any is a miss
        stage.wrong.append(f"{name}: {type(error).__name__}: {error}"[:300])
    if at and injection.count < at:
        stage.wrong.append(f"{name}: never came to its statement")
    stage.runs[f"{code or how}, {stage.attempts} attempts" if at else "undisturbed"] += 1
    with stage.look.connect() as connection:
        effects = connection.execute(
            sa.text("select count(*) from scene_effect where number = :n"), {"n": stage.number}
        ).scalar_one()
    if effects != 1 or total(stage) != before + 1:
        stage.wrong.append(f"{name}: {effects} effects, the sum {before} became {total(stage)}")
    if stage.attempts > 2:
        stage.wrong.append(f"{name}: {stage.attempts} attempts")


def total(stage: Stage) -> int:
    """What all effects have come to."""
    with stage.look.connect() as connection:
        found: int = connection.execute(sa.text("select n from scene_counter")).scalar_one()
        return found
