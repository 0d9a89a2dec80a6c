"""Units of work run again, by either kind of session: what their tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.retries import Retry
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.unit_retries import retry_unit
from tests.write_path.shop import INSERT, Said, Shop

Kind = Literal["sync", "async"]
Body = Callable[[Session, int], Any]

# what a server answers to a loser, without anybody to lose against
CONFLICT = {
    "postgresql": "do $$ begin raise exception 'no' using errcode = '40001'; end $$",
    "mysql": "signal sqlstate '40001' set mysql_errno = 1213, message_text = 'no'",
    "mariadb": "signal sqlstate '40001' set mysql_errno = 1213, message_text = 'no'",
}


def conflict(session: Session) -> None:
    """The database gives this transaction up."""
    session.execute(sa.text(CONFLICT[session.get_bind().dialect.name]))


def write(session: Session, word: str) -> None:
    session.execute(INSERT, {"note": word})


def kill(shop: Shop, session: Session) -> None:
    """The server ends this session's connection; nobody has told the session."""
    mysql = shop.name == "mariadb"
    own = session.scalar(sa.text("select connection_id()" if mysql else "select pg_backend_pid()"))
    shop.execute(f"kill {own}" if mysql else f"select pg_terminate_backend({own}, 5000)")


@dataclass
class Runner:
    """Runs a unit until it is committed or given up; its body is the same for both kinds.

    The body gets the Session and the number of the attempt. Each attempt publishes its number.
    """

    shop: Shop
    kind: Kind
    attempts: int = 0
    pauses: list[float] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    asleep: Callable[[], object] = lambda: None
    prepare: Callable[[sa.Engine], None] = lambda _: None
    engine_options: dict[str, Any] = field(default_factory=dict)
    session_class: Any = None
    name: str = "attempt"
    publishes: bool = True

    def __call__(self, body: Body, **options: Any) -> Any:
        options = {"retry": Retry(max_attempts=3), **options}
        if self.kind == "sync":
            engine = self.shop.make_engine(**self.engine_options)
            self.prepare(engine)
            make = sessionmaker(engine, class_=self.session_class or Session)
            return retry_unit(make, self._work(body), sleep=self._sleep, **options)
        return asyncio.run(self._run_async(body, options))

    async def _run_async(self, body: Body, options: dict[str, Any]) -> Any:
        engine = self.shop.make_async_engine(**self.engine_options)
        self.prepare(engine.sync_engine)
        make = async_sessionmaker(engine, class_=self.session_class or AsyncSession)
        work = self._work(body)

        async def in_session(uow: UnitOfWork[AsyncSession]) -> Any:
            return await uow.session.run_sync(lambda session: work(uow, session))

        async def sleep(seconds: float) -> None:
            self._sleep(seconds)

        try:
            return await retry_unit(make, in_session, sleep=sleep, **options)
        finally:
            await engine.dispose()

    def _work(self, body: Body) -> Callable[..., Any]:
        def work(uow: UnitOfWork[Any], inner: Session | None = None) -> Any:
            session: Session = inner if inner is not None else uow.session
            self.attempts += 1
            self.sessions.append(session)
            if self.publishes:
                uow.publish(Said(word=f"{self.name} {self.attempts}"))
            return body(session, self.attempts)

        return work

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.asleep()
