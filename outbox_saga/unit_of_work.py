"""Publish inside a transaction: the message leaves if, and only if, the transaction commits.

    with unit_of_work(Session) as uow:
        uow.session.add(order)
        uow.publish(OrderPlaced(order_id=order.id), key=f"order:{order.id}")

Teams with their own session life cycle write `UnitOfWork(session).publish(...)`. We never commit
for them.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_saga.commits import (
    COMMIT_TIMEOUT,
    async_commit_and_close,
    check_commit_timeout,
    commit_within,
)
from outbox_saga.envelopes import MAX_BODY, Envelope, seal, seal_body
from outbox_saga.errors import ConfigurationError, MessageRefused, NoTransaction, OutboxFull
from outbox_saga.messages import Kind, Message
from outbox_saga.pending import Write, Written, keep_with_connection, keep_with_session
from outbox_saga.queries.backlog import backlog_reaches
from outbox_saga.queries.delayed import Delayed, write_delayed
from outbox_saga.queries.outbox import write_messages
from outbox_saga.queries.schema import refuse_translated
from outbox_saga.tables import Tables, tables_in

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )

    AnySession = (
        Session
        | AsyncSession
        | scoped_session[Any]
        | async_scoped_session[Any]
        | sa.Connection
        | AsyncConnection
    )

S = TypeVar("S")
Delay = float | dt.timedelta
MAX_DELAY = 10 * 366 * 86_400.0  # seconds


@functools.cache
def message_writer(tables: Tables) -> Write:
    """The function that writes a transaction's messages into these tables at commit.

    One per schema.
    """

    def write(connection: sa.Connection, envelopes: list[Any]) -> Written:
        refuse_translated(connection, tables)
        messages = cast("list[Envelope]", envelopes)
        answer = write_messages(connection, tables, messages)
        return Written(tuple(message.id for message in messages), answer)

    write.rank = 1  # type: ignore[attr-defined]  # after everything else that is written at commit
    return write


@functools.cache
def limit_keeper(tables: Tables) -> Write:
    """The function that refuses a commit while as many messages wait as a limit allows."""

    def refuse(connection: sa.Connection, limits: list[Any]) -> None:
        refuse_translated(connection, tables)
        limit = min(limits)
        if backlog_reaches(connection, tables, limit):
            raise OutboxFull(
                f"{limit} messages wait in the outbox, as many as max_pending allows: nothing was "
                "committed; see that a relay runs, and try again later"
            )

    return refuse


@functools.cache
def delayed_writer(tables: Tables) -> Write:
    """The function that writes a transaction's delayed messages into these tables at commit."""

    def write(connection: sa.Connection, delayed: list[Any]) -> Written:
        refuse_translated(connection, tables)
        messages = cast("list[Delayed]", delayed)
        answer = write_delayed(connection, tables, messages)
        return Written(tuple(message.envelope.id for message in messages), answer)

    return write


class UnitOfWork(Generic[S]):
    """What is published through it leaves if, and only if, the session's transaction commits.

    Publishing is a plain synchronous call on both kinds of session: nothing is sent to the
    database before the commit, when all messages of the transaction are written by one statement.

    Args:
        session: Session, AsyncSession, scoped_session (Flask-SQLAlchemy's `db.session`),
            Connection or AsyncConnection.
        schema: Of our tables; None is the connection's default. A `schema_translate_map` that
            moves it is refused at the commit (ConfigurationError).
        bind: The engine whose database holds our tables, for sessions with several.
        source: The name of the publishing service, on every message.
        correlation_id: Of the conversation that goes on; None starts a new one with each message.
        causation_id: The id of the message being handled.
        headers: Added to every message (`traceparent`).
        max_body: Bytes a body may have.
        max_pending: Messages that may wait in the outbox: while there are as many, a transaction
            that publishes is refused at its commit (OutboxFull), before anything is committed. A
            soft limit, counted about once a second in each process, by what the transaction that
            counts can see. None: no limit.
    """

    def __init__(
        self,
        session: S,
        *,
        schema: str | None = None,
        bind: sa.Engine | AsyncEngine | None = None,
        source: str = "outbox-saga",
        correlation_id: str | None = None,
        causation_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_body: int = MAX_BODY,
        max_pending: int | None = None,
    ) -> None:
        if max_pending is not None and max_pending < 1:
            raise ConfigurationError(f"max_pending is {max_pending}; give 1 or more, or None")
        self.session = session
        self.tables = tables_in(schema)
        self.source = source
        self._bind: sa.Engine | None = _engine_behind(bind)
        self.correlation_id = correlation_id
        self._causation_id = causation_id
        self._headers = headers
        self._max_body = max_body
        self._max_pending = max_pending

    def publish(
        self,
        message: Message,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        topic: str | None = None,
        delay: Delay | None = None,
    ) -> UUID:
        """The message leaves if, and only if, the transaction commits; returns its id.

        Args:
            message: An Event, Command or Reply.
            key: Messages of one key are delivered in the order in which their transactions
                committed. Writers of one key wait for each other while they commit. None: no
                promise, no cost.
            headers: Added to this message.
            topic: Instead of the message class's own.
            delay: Seconds (or a timedelta) after which it leaves: never earlier, by the database's
                clock, counted from the commit's own write. It takes its place among the messages
                of its key only then. At most ten years.

        Raises:
            MessageRefused: It cannot travel; `path` names the value. The transaction still works.
            NoTransaction: There is no transaction to share the fate of.
            AutocommitRefused: The connection commits every statement by itself.
        """
        seconds = 0.0 if delay is None else delay_seconds(delay)
        envelope = self._seal(message, key=key, headers=headers, topic=topic)
        self.keep_sealed(envelope, seconds)
        return envelope.id

    def publish_many(
        self, messages: Sequence[Message], *, key: str | None = None, delay: Delay | None = None
    ) -> list[UUID]:
        """As `publish` for each, in this order: all of them leave, or none."""
        seconds = delay_seconds(delay)
        envelopes = [self._seal(message, key=key) for message in messages]
        for envelope in envelopes:
            self.keep_sealed(envelope, seconds)
        return [envelope.id for envelope in envelopes]

    def publish_body(
        self,
        body: bytes,
        *,
        topic: str,
        type: str,  # noqa: A002  # the name CloudEvents has for it
        key: str | None = None,
        kind: Kind = "event",
        version: int = 1,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        delay: Delay | None = None,
    ) -> UUID:
        """As `publish`, for a body that is ready: carried byte for byte.

        JSON is checked as strictly as a model's.
        """
        seconds = delay_seconds(delay)
        envelope = seal_body(
            body,
            type_=type,
            topic=topic,
            kind=kind,
            version=version,
            content_type=content_type,
            key=key,
            headers=self._merged(headers),
            source=self.source,
            correlation_id=self.correlation_id,
            causation_id=self._causation_id,
            max_body=self._max_body,
        )
        self.keep_sealed(envelope, seconds)
        return envelope.id

    def keep_sealed(self, envelope: Envelope, seconds: float = 0.0) -> None:
        """As `publish`, for a message that was sealed already; it leaves after so many seconds."""
        if self._max_pending is not None:
            self.keep(self._max_pending, limit_keeper(self.tables))
        if seconds:
            self.keep(Delayed(envelope, seconds), delayed_writer(self.tables))
        else:
            self.keep(envelope, message_writer(self.tables))

    def keep(self, thing: object, writer: Write) -> None:
        """`writer` gets `thing` at the outermost commit, and never if what it was kept in rolls
        back.
        """
        target = _synchronous(self.session)
        if isinstance(target, sa.Connection):
            keep_with_connection(target, thing, writer)
        else:
            keep_with_session(target, thing, writer, bind=self._bind, clause=self.tables.outbox)

    def _seal(
        self,
        message: Message,
        *,
        key: str | None,
        headers: Mapping[str, str] | None = None,
        topic: str | None = None,
    ) -> Envelope:
        return seal(
            message,
            key=key,
            headers=headers if self._headers is None else self._merged(headers),
            topic=topic,
            source=self.source,
            correlation_id=self.correlation_id,
            causation_id=self._causation_id,
            max_body=self._max_body,
        )

    def _merged(self, headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
        if self._headers is None or not isinstance(headers or {}, Mapping):
            return headers
        return {**self._headers, **(headers or {})}


def delay_seconds(delay: Delay | None) -> float:
    """The delay in seconds; 0 for none. Raises MessageRefused for what is no delay."""
    if delay is None:
        return 0.0
    seconds = delay.total_seconds() if isinstance(delay, dt.timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise MessageRefused("delay", f"is a {type(delay).__name__}; give seconds or a timedelta")
    if not 0 <= seconds <= MAX_DELAY:
        raise MessageRefused(
            "delay", f"{seconds} is no delay: give seconds from 0 to {MAX_DELAY:.0f}, or none"
        )
    return float(seconds)


def _engine_behind(bind: Any) -> Any:
    return getattr(bind, "sync_engine", bind)


def _synchronous(session: Any) -> Session | sa.Connection:
    """The Session or Connection behind whatever the caller works with; no I/O."""
    if isinstance(session, (Session, sa.Connection)):  # `|` would be worked out at each call
        return session
    inner = getattr(session, "sync_session", None) or getattr(session, "sync_connection", None)
    if inner is not None:
        return cast("Session | sa.Connection", inner)
    if isinstance(session, scoped_session):
        return cast("Session", session())
    registry = getattr(session, "registry", None)  # async_scoped_session
    if registry is not None:
        return _synchronous(registry())
    if hasattr(session, "sync_connection"):
        raise NoTransaction(
            "the AsyncConnection is not started: `async with engine.connect() as connection`"
        )
    raise TypeError(
        f"{type(session).__name__} is not a session: give a Session, AsyncSession, "
        "scoped_session, "
        "Connection or AsyncConnection"
    )


class _UnitOfWorkContext(Generic[S]):
    """A session, its transaction and a UnitOfWork on it, for one `with` or `async with` block."""

    def __init__(
        self, make: Any, commit_timeout: float | None, options: Mapping[str, Any]
    ) -> None:
        self._make = make
        self._commit_timeout = commit_timeout
        self._options = options
        self._session: Any = None

    def __enter__(self) -> UnitOfWork[S]:
        self._session = self._make()
        if hasattr(self._session, "sync_session"):
            raise TypeError("this is an async_sessionmaker: write `async with unit_of_work(...)`")
        self._session.begin()
        return UnitOfWork(self._session, **self._options)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._session:
            if kind is None:
                commit_within(self._session, self._commit_timeout)
            else:
                self._session.rollback()

    async def __aenter__(self) -> UnitOfWork[S]:
        self._session = self._make()
        if not hasattr(self._session, "sync_session"):
            raise TypeError("this is a sessionmaker: write `with unit_of_work(...)`")
        await self._session.begin()
        return UnitOfWork(self._session, **self._options)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await async_commit_and_close(self._session, self._commit_timeout)
        else:
            async with self._session:
                await self._session.rollback()


if TYPE_CHECKING:

    class SyncUnitOfWork(Generic[S]):
        """What `with` gets."""

        def __enter__(self) -> UnitOfWork[S]: ...
        def __exit__(self, *error: object) -> None: ...

    class AsyncUnitOfWork(Generic[S]):
        """What `async with` gets."""

        async def __aenter__(self) -> UnitOfWork[S]: ...
        async def __aexit__(self, *error: object) -> None: ...

    SyncS = TypeVar("SyncS", bound=Session)
    AsyncS = TypeVar("AsyncS", bound=AsyncSession)


@overload
def unit_of_work(
    make: sessionmaker[SyncS], *, commit_timeout: float | None = ..., **options: Any
) -> SyncUnitOfWork[SyncS]: ...
@overload
def unit_of_work(
    make: async_sessionmaker[AsyncS], *, commit_timeout: float | None = ..., **options: Any
) -> AsyncUnitOfWork[AsyncS]: ...


def unit_of_work(
    make: Any, *, commit_timeout: float | None = COMMIT_TIMEOUT, **options: Any
) -> Any:
    """One session, one transaction, one fate.

    Committed at the end of the block, rolled back when it raises.

    Args:
        make: A sessionmaker (then `with`) or an async_sessionmaker (then `async with`).
        commit_timeout: Seconds the commit may take, from the flush to the answer of COMMIT; a
            server that has gone silent would be waited for for ever. None: no limit.
        options: Those of `UnitOfWork`.

    Raises:
        CommitUnknown: COMMIT was sent, and its answer never came: ask `commit_outcome` before you
            do it again.
        TimeoutError: Time was up before COMMIT was sent; nothing is committed.
    """
    check_commit_timeout(commit_timeout)
    return _UnitOfWorkContext(make, commit_timeout, options)
