"""A service in one object: its database, its broker, its sagas and its handlers.

    service = Service("orders", database=URL, broker="nats://…", sagas=[fulfil_order])

    @service.on(PaymentCompleted)
    async def paid(handle: HandlerContext[PaymentCompleted]) -> None: ...

`outbox-saga run shop.orders:service` runs its relay, orchestrator and consumers in one process;
`async with service.running():` embeds them.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.brokers import Publisher, Subscription, open_publisher
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.commits import COMMIT_TIMEOUT
from outbox_saga.consuming import consume
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError, PartEnded
from outbox_saga.handlers import HANDLING, TIMEOUT, Handlers, Poison
from outbox_saga.handling import Handling
from outbox_saga.messages import Command, Message, check_type
from outbox_saga.participants import Participants
from outbox_saga.queries.clock import DATABASE_CLOCK, Clock
from outbox_saga.queries.dialects import brief
from outbox_saga.requesting import Answered, Requests, check_timeout
from outbox_saga.retries import Retry
from outbox_saga.saga.arrivals import Arrivals
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.saga.remote import Answers
from outbox_saga.service_units import ServiceUnitOfWork
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.waiting import WaitingRoom
from outbox_saga.worker_threads import WorkerThreads

logger = logging.getLogger("outbox_saga.service")

F = TypeVar("F", bound=Callable[[Any], Any])

DATABASE_PATIENCE = 60.0  # seconds that one message may wait for the database


class Service:
    """What one service publishes, handles and carries on; nothing connects before it is used.

    Args:
        name: Stable: on every message, in business keys and consumer names.
        database: URL, or a Database.
        broker: "local" (this service's own handlers, no server) or a broker URL.
        sagas: The definitions this service can carry on, old versions too.
        schema: Of our tables; None is the connection's default. A Database has its own.
        clock: Tests shift it. A Database has its own.
        concurrency: Saga instances at the same time, messages of each consumer, and messages
            that wait for another try. Each may hold a connection of the database: see
            "Connections" in docs/operations.md.
        lease: Of the orchestrator, in seconds; see `Orchestrator`.
        poll: Of the orchestrator, in seconds, between two looks when nothing is due.
        requests: Its consumers take in what others answer to its requests: see `ask`.

    Raises:
        ConfigurationError: A Database together with a schema or a clock, which it has already.
    """

    def __init__(
        self,
        name: str,
        *,
        database: str | sa.URL | Database,
        broker: str = "local",
        sagas: Iterable[Saga[Any]] = (),
        schema: str | None = None,
        clock: Clock = DATABASE_CLOCK,
        concurrency: int = 16,
        lease: float = 30.0,
        poll: float = 0.25,
        requests: bool = False,
    ) -> None:
        self.name = check_type(name)
        if isinstance(database, Database) and (schema is not None or clock is not DATABASE_CLOCK):
            raise ConfigurationError(
                "a Database has its own schema and clock: give them to Database(…)"
            )
        self.database = (
            database
            if isinstance(database, Database)
            else Database(database, schema=schema, clock=clock)
        )
        self.broker = broker
        self.sagas = tuple(saga.check() for saga in sagas)
        self.handlers = Handlers(self.name)
        self._requests = Requests(self.database, self.name, taken_in=requests)
        for taking_in in (
            Arrivals(self.database, self.name, self.sagas),
            Answers(self.database, self.name, self.sagas),
            self._requests,
        ):
            for message_class, consumer, function in taking_in.handlers():
                # one that does not fit its instance says nothing about those that come after it
                self.handlers.add(message_class, function, consumer, poison="skip")
        self._participants = Participants(self.database)
        self.concurrency = concurrency
        self.lease = lease
        self.poll = poll
        self.database.make_room(self, 0, kept=concurrency + 4)
        self._threads = WorkerThreads(concurrency, "outbox-saga-handler")
        self.handling = Handling(self.database, self._threads, self.handlers)

    # --- publishing ------------------------------------------------------------------------------

    def unit_of_work(
        self, *, commit_timeout: float | None = COMMIT_TIMEOUT, **options: Any
    ) -> ServiceUnitOfWork:
        """One transaction: `with` for a Session, `async with` for an AsyncSession.

        Committed at the end of the block.

        Args:
            commit_timeout: As of the function `unit_of_work`.
            options: Those of `UnitOfWork`, as `max_pending`.
        """
        return ServiceUnitOfWork(
            self.database, functools.partial(self.work_in, **options), commit_timeout
        )

    def work_in(self, session: Any, **options: Any) -> UnitOfWork[Any]:
        """A UnitOfWork of this service on the caller's own session, whose transaction the caller
        ends.
        """
        schema = self.database.tables.schema
        return UnitOfWork(session, **{"schema": schema, "source": self.name, **options})

    # --- requests --------------------------------------------------------------------------------

    def ask(
        self,
        uow: UnitOfWork[Any],
        command: Command,
        *,
        key: str | None = None,
        request: UUID | None = None,
    ) -> UUID:
        """The request is made if, and only if, the transaction commits; the id of its answer.

        Another service carries the command out once, however often it is delivered
        (`Service.handles`), and its answer comes into this service's database: `reply`.

        Args:
            uow: Of the transaction; a handler's `uow` as well.
            key: Commands of one key are handled in the order of their transactions.
            request: Its id, to ask again when nobody knows whether the first time was committed:
                what is asked twice under one id is carried out once. Another command under it is
                not carried out: a dead letter over there. None: a new one.

        Raises:
            ConfigurationError: The service was made without `requests=True`.
            MessageRefused: The command cannot travel.
        """
        return self._requests.ask(uow, command, key, request)

    def withdraw(
        self,
        uow: UnitOfWork[Any],
        request: UUID,
        command: Command,
        *,
        key: str | None = None,
    ) -> None:
        """Nothing of the request stays, if, and only if, the transaction commits.

        What was done is undone by this command, once; what comes after it is refused. If the
        handler over there answers the undoing with a Failure, what was done is still there, and
        that answer waits in this service's `outbox-saga waiting` (`withdrawal_refused`).

        Args:
            request: As `ask` returned it.
            command: The one that its handler names: `handles(…, undo=ThisClass)`.

        Raises:
            ConfigurationError: The service was made without `requests=True`.
            MessageRefused: The command cannot travel.
        """
        self._requests.withdraw(uow, request, command, key)

    def reply(self, request: UUID, *, timeout: float = 30.0) -> Answered:
        """What was answered: Success with the fields of the answer, or Failure with the reason
        of a no, after which nothing is done. The same answer each time it is asked for.

        The answer is kept for as long as the inbox remembers (`Housekeeping`, 30 days).

        Args:
            timeout: Seconds to wait for it.

        Raises:
            RequestTimeout: It is not here yet.
            RequestFaulted: The handler over there has given up, so far.
            ConfigurationError: The timeout is no number of seconds.
        """
        return self._requests.wait(request, timeout)

    async def async_reply(self, request: UUID, *, timeout: float = 30.0) -> Answered:  # noqa: ASYNC109
        """As `reply`, without holding up the event loop."""
        return await self._requests.async_wait(request, timeout)

    def request(
        self,
        command: Command,
        *,
        key: str | None = None,
        request: UUID | None = None,
        timeout: float = 30.0,
    ) -> Answered:
        """As `ask`, in a transaction of its own, and `reply`.

        Raises CommitUnknown as well, when nobody knows whether it was asked: ask again under the
        same `request`.
        """
        check_timeout(timeout)
        with self.unit_of_work() as uow:
            asked = self.ask(uow, command, key=key, request=request)
        return self.reply(asked, timeout=timeout)

    async def async_request(
        self,
        command: Command,
        *,
        key: str | None = None,
        request: UUID | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109
    ) -> Answered:
        """As `request`, without holding up the event loop."""
        check_timeout(timeout)
        async with self.unit_of_work() as uow:
            asked = self.ask(uow, command, key=key, request=request)
        return await self.async_reply(asked, timeout=timeout)

    # --- handling --------------------------------------------------------------------------------

    def on(
        self,
        message_class: type[Message],
        *,
        consumer: str | None = None,
        concurrency: int | None = None,
        retry: Retry = HANDLING,
        timeout: float | None = TIMEOUT,
        poison: Poison = "park",
        pessimistic: bool = False,
    ) -> Callable[[F], F]:
        """Registers a handler: its effect happens once for each message.

        Inbox row, its database work and what it publishes or returns are one transaction. A
        message it fails on waits, and later ones of its key behind it.

        Args:
            message_class: What it handles.
            consumer: Its stable name, `service.MessageType` when left out; the inbox remembers by
                it.
            concurrency: Messages it may have in hand at the same time in this process; None: as
                many as are delivered.
            retry: When a message it failed on is tried again, and how often in all; then it is a
                dead letter (`outbox-saga waiting`).
            timeout: Seconds for one message, with the flush of its session; None: no limit. An
                async handler is then cancelled; a plain one keeps its thread, and can commit
                nothing any more. Either has failed. What follows, until COMMIT is sent, may take
                30 s, whatever it waits for.
            poison: "park": a dead letter holds up the later ones of its key until somebody
                decides. "skip": they go on without it.
            pessimistic: For handlers that act outside the database: a claim is committed before it
                runs, so that duplicates wait and never run beside it. After a crash it runs again:
                send `handle.key` with each call.

        Raises:
            ConfigurationError: An option out of its bounds, or a second handler of this message
                under one consumer name.
        """

        def register(function: F) -> F:
            self.handlers.add(
                message_class,
                function,
                consumer,
                concurrency=concurrency,
                retry=retry,
                timeout=timeout,
                poison=poison,
                pessimistic=pessimistic,
            )
            return function

        return register

    def handles(
        self,
        command: type[Command],
        *,
        undo: type[Command] | None = None,
        consumer: str | None = None,
        concurrency: int | None = None,
        retry: Retry = HANDLING,
        timeout: float | None = TIMEOUT,
        poison: Poison = "park",
    ) -> Callable[[F], F]:
        """Registers the handler of a command: it is carried out once, and answered.

        Whatever a saga sends, in whatever order and however often: the effect happens once, each
        command gets the same answer, what was undone stays undone, and a command that comes after
        its undoing is refused. Effect, answer and the row that decides are one transaction.

        The handler returns Success(data), a model, a mapping or None: it was done, and the data is
        the answer. Failure(reason): a business no; nothing that it changed or published stays. An
        exception: the command waits for its next attempt, and nobody is answered.

        For calls to the outside `handle.key` is the same for every sending of one command.

        Args:
            command: What it handles; nothing else of this service may carry it out. One that was
                plainly published is handled as by `on`, and the data of its answer is nobody's.
            undo: The command that undoes it, which needs a handler of its own here. It is called
                only for what was done.

        The other arguments are those of `on`, which also says what is raised.
        """

        def register(function: F) -> F:
            self._participants.pair(command, undo)
            self.handlers.add(
                command,
                self._participants.wrap(function),
                consumer,
                concurrency=concurrency,
                retry=retry,
                timeout=timeout,
                poison=poison,
                answers=True,
            )
            return function

        return register

    async def deliver(self, envelope: Envelope) -> int:
        """Hands one message to this service's handlers, once each; returns how many wanted it.

        Each has handled it, or it waits for its next attempt; otherwise this raises.
        """
        return await self.handling.deliver(envelope)

    # --- running ---------------------------------------------------------------------------------

    def publisher(self) -> Publisher:
        """The publisher for this service's broker, not yet connected."""
        if self.broker == "local":
            self._participants.check(self.handlers)
            self._make_room()
            longest = self.handlers.longest()
            return LocalPublisher(
                self.deliver,
                concurrency=self.concurrency,
                # the handlers have limits of their own, so this one is for the database
                timeout=None if longest is None else longest + DATABASE_PATIENCE,
            )
        return open_publisher(self.broker)

    async def relay(self, stop: asyncio.Event, **options: Any) -> None:
        """Publishes what this service's transactions committed, until `stop` is set."""
        await self.relay_program(**options).run(stop)

    def relay_program(self, **options: Any) -> Any:
        """A relay of this service's outbox, not yet running; options as `Relay`."""
        # the relay is a program above the library, asked for by name so that imports go one way
        program = importlib.import_module("outbox_saga_relay.relay")
        settings = {"service": self.name, **options}
        return program.Relay(self.database, self.publisher(), **settings)

    async def orchestrate(self, stop: asyncio.Event, **options: Any) -> None:
        """Carries this service's sagas on, until `stop` is set."""
        orchestrator = self.orchestrator(**options)
        try:
            await orchestrator.run(stop)
        finally:
            orchestrator.close()

    def orchestrator(self, **options: Any) -> Orchestrator:
        """An orchestrator for this service's sagas; options as `Orchestrator`."""
        self._make_room()
        settings = {
            "concurrency": self.concurrency,
            "lease": self.lease,
            "poll": self.poll,
            "source": self.name,
            **options,
        }
        return Orchestrator(self.database, self.sagas, **settings)

    async def consume(self, stop: asyncio.Event) -> None:
        """Handles what the broker delivers to this service's consumers, and tries again what
        waits, until `stop` is set.

        With the local broker the relay delivers, and only what waits is left to do here.
        """
        self._participants.check(self.handlers)
        self._make_room()
        consumers = self.handlers.consumers()
        if not consumers:
            await stop.wait()
            return
        parts = [self.waiting_room().run(stop)]
        if self.broker != "local":
            parts += [
                consume(
                    self.broker,
                    Subscription(name, topics, self.concurrency),
                    self.handling,
                    stop,
                )
                for name, topics in consumers.items()
            ]
        await _all(parts, stop)

    def waiting_room(self, **options: Any) -> WaitingRoom:
        """Who tries this service's waiting messages again; options as `WaitingRoom`."""
        settings = {"concurrency": self.concurrency, "poll": self.poll, **options}
        return WaitingRoom(self.handling, **settings)

    def _make_room(self) -> None:
        """For all of its parts: any of them may run here, at the same time."""
        consumers = len(self.handlers.consumers())
        deliver = min(1, consumers) if self.broker == "local" else consumers
        retry, orchestrate = min(1, consumers), min(1, len(self.sagas))
        needed = self.concurrency * (deliver + retry + orchestrate)
        self.database.make_room(self, needed, kept=self.concurrency + 4)

    async def run(self, stop: asyncio.Event) -> None:
        """Relay, orchestrator and consumers in this process, until `stop` is set or one of them
        fails.
        """
        await _all([self.relay(stop), self.orchestrate(stop), self.consume(stop)], stop)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """Relay, orchestrator and consumers for the time of the block; drained at its end.

        If one of them fails, the block is cancelled and the error raised.
        """
        stop = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.run(stop))
                try:
                    yield self
                finally:
                    stop.set()
        except BaseExceptionGroup as errors:
            raise _first_of(errors) from None

    async def close(self) -> None:
        """Gives connections and threads back."""
        self._threads.shutdown(wait=False)
        await self.database.close()

    def __repr__(self) -> str:
        names = ", ".join(saga.name for saga in self.sagas)
        consumers = ", ".join(sorted(self.handlers.consumers()))
        return f"<Service {self.name}: sagas [{names}], consumers [{consumers}]>"


async def _all(parts: Iterable[Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """All parts until they return; the first error ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(_loudly(part, stop))
    except BaseExceptionGroup as errors:
        raise _first_of(errors) from None


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error, for whoever waits; the log has the others, or nobody would know of them."""
    first, *others = errors.exceptions
    for other in others:
        logger.error("another part failed as well (%s)", brief(other))
    return first


async def _loudly(part: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """The part; one that ends before `stop` is set fails: the others would go on without it.

    Cancelled from inside, too, where a TaskGroup would say nothing.
    """
    how = "ended"
    try:
        await part
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        how = "was cancelled from inside"
    if not stop.is_set():
        told = f"{getattr(part, '__qualname__', 'a part')} {how} before it was stopped"
        logger.error("%s", told)
        raise PartEnded(told)
