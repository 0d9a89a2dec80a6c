"""Housekeeping: what may be forgotten goes, batch by batch, by one runner among all processes.

It never touches a message that has not been published, whatever its age, and never what operators
did. Between two batches it holds no lock and no transaction.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from outbox_saga.database import READ_ONLY, Database
from outbox_saga.deadlines import limit_transaction
from outbox_saga.errors import AlreadyRunning, CommitUnknown, ConfigurationError, DatabaseSilent
from outbox_saga.ids import new_id
from outbox_saga.queries import archive_partitions as partitions
from outbox_saga.queries import one_runner, pruning
from outbox_saga.queries.dialects import brief, limit_idle_transaction, ran_out_of_time
from outbox_saga.queries.passing import passes
from outbox_saga.queries.schema import require_tables
from outbox_saga_relay.database_thread import DatabaseThread
from outbox_saga_relay.wire import Wire, lay_wires, wire_of

logger = logging.getLogger("outbox_saga.housekeeping")

P = ParamSpec("P")
T = TypeVar("T")

DAY = 86_400.0
ARCHIVE_WINDOW = 3 * DAY
INBOX_WINDOW = 30 * DAY
LEAST_INBOX_WINDOW = 3600.0  # what is forgotten sooner, brokers may be delivering still
PROCESS_WINDOW = 7 * DAY  # since a process has died; nothing is lost with it but its mention
RUNNER = "housekeeping"
LEASE = 60.0  # seconds: one batch takes less, and each renews it


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one round removed, or would remove.

    Args:
        inbox: Notes of handled messages.
        archive: Published messages, one by one; in a plan also those that go with their day.
        processes: Mentions of dead processes.
        replies: Answers to requests.
        sagas: Those that have ended for good, each with its history.
        barriers: Notes of commands that were carried out or undone.
        days_made: Partitions of the archive made ahead (PostgreSQL).
        days_dropped: Partitions of the archive dropped, with all they held (PostgreSQL).
    """

    inbox: int = 0
    archive: int = 0
    processes: int = 0
    replies: int = 0
    sagas: int = 0
    barriers: int = 0
    days_made: tuple[dt.date, ...] = ()
    days_dropped: tuple[dt.date, ...] = ()

    def __bool__(self) -> bool:
        return self != Pruned()

    def __add__(self, more: Pruned) -> Pruned:
        fields = self.__dataclass_fields__
        return Pruned(**{name: getattr(self, name) + getattr(more, name) for name in fields})


class Housekeeping:
    """Removes what is past its window. Any number may run; one at a time works.

    Args:
        database: The service's.
        archive_window: Seconds for which published messages can be replayed; 0 keeps none, and
            None leaves the archive alone, which another relay may fill. On PostgreSQL whole days
            go, so it is up to a day more.
        inbox_window: Seconds for which an inbox remembers what it handled, an hour or more; None
            is for ever. Longer than any broker or person may deliver a message again: what is
            forgotten is handled again. Answers to requests are kept for as long.
        saga_window: Seconds for which completed and compensated sagas are kept, with their
            history; None is for ever. Longer than a call, an answer or an event may come late:
            what is forgotten has never been.
        keyed_sagas: Those that were started under a business key go, too. Only if nobody will ever
            start one again under it: it would begin anew, under the keys of the first, and be
            given the answers that the first one got.
        barrier_window: Seconds for which a participant remembers what it was commanded; None is
            for ever. Longer than any saga that commands it may last, a stuck one too, until a
            person has decided: what is forgotten is carried out again, and not undone.
        process_window: Seconds after which a dead process is not mentioned any more.
        interval: Seconds between two rounds.
        batch: Rows a transaction; of sagas so many with their history.
        pause: Seconds between two batches, in which others have the database for themselves.

    Raises:
        ConfigurationError: A window or a size that cannot be meant.
    """

    def __init__(
        self,
        database: Database,
        *,
        archive_window: float | None = ARCHIVE_WINDOW,
        inbox_window: float | None = INBOX_WINDOW,
        saga_window: float | None = None,
        keyed_sagas: bool = False,
        barrier_window: float | None = None,
        process_window: float = PROCESS_WINDOW,
        interval: float = 10 * 60.0,
        batch: int = 1000,
        pause: float = 0.1,
    ) -> None:
        for name, value in (
            ("archive_window", archive_window),
            ("process_window", process_window),
            ("pause", pause),
        ):
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name} is {value}; give seconds, 0 or more")
        if inbox_window is not None and not LEAST_INBOX_WINDOW <= inbox_window < float("inf"):
            raise ConfigurationError(
                f"inbox_window is {inbox_window}; give seconds, {LEAST_INBOX_WINDOW:.0f} (an "
                "hour) or more, or None: what is forgotten is handled again when it comes again"
            )
        for name, value in (("saga_window", saga_window), ("barrier_window", barrier_window)):
            if value is not None and not DAY <= value < float("inf"):
                raise ConfigurationError(
                    f"{name} is {value}; give seconds, {DAY:.0f} (a day) or more, or None: what "
                    "comes late must find what it belongs to"
                )
        if not 0 < interval < float("inf"):
            raise ConfigurationError(f"interval is {interval}; give seconds, more than 0")
        if batch < 1:
            raise ConfigurationError(f"batch is {batch}; give 1 row or more")
        self.database = database
        self.archive_window = archive_window
        self.inbox_window = inbox_window
        self.saga_window = saga_window
        self.keyed_sagas = keyed_sagas
        self.barrier_window = barrier_window
        self.process_window = process_window
        self.interval = interval
        self.batch = batch
        self.pause = pause
        self._owner = new_id()
        self._tables = database.tables
        self._clock = database.clock
        self._wire: Wire | None = None
        self._thread = DatabaseThread(
            "outbox-saga-housekeeping", limit=database.deadline, cut=self._cut_wire
        )

    # --- a plan ------------------------------------------------------------------------------

    def plan(self) -> Pruned:
        """What a round would remove now; nothing is removed, and nobody waits for anybody."""
        t, c = self._tables, self._clock
        engine = self.database.engine.execution_options(**{READ_ONLY: True})
        with engine.begin() as connection:
            require_tables(connection, t)
            rows: dict[str, Any] = {
                field: past(connection, t, c, window)
                for field, window, past, _ in self._rows()
                if window is not None
            }
            return replace(Pruned(), **rows, **self._days(connection))

    def _days(self, connection: sa.Connection) -> dict[str, Any]:
        t, c = self._tables, self._clock
        if self.archive_window is None:
            return {}
        past = partitions.days_past(connection, t, c, self.archive_window)
        made = partitions.days_to_make(connection, t, c) if self.archive_window else ()
        return {"days_made": tuple(made), "days_dropped": tuple(past)}

    def _rows(self) -> Iterator[tuple[str, float | None, Callable[..., int], Callable[..., int]]]:
        """What goes row by row: its field, its window, what counts it and what removes it."""
        yield "archive", self.archive_window, pruning.past_archive, pruning.prune_archive
        yield "inbox", self.inbox_window, pruning.past_inbox, pruning.prune_inbox
        yield "replies", self.inbox_window, pruning.past_replies, pruning.prune_replies
        sagas = (pruning.past_sagas, pruning.prune_sagas)
        past_sagas, prune_sagas = (partial(each, keyed=self.keyed_sagas) for each in sagas)
        yield "sagas", self.saga_window, past_sagas, prune_sagas
        yield "barriers", self.barrier_window, pruning.past_barriers, pruning.prune_barriers
        yield "processes", self.process_window, pruning.past_processes, pruning.prune_processes

    # --- a round -----------------------------------------------------------------------------

    def batches(self) -> Iterator[Pruned]:
        """One round: each step is one transaction, and says what has gone so far.

        What it is left without, another round removes: it may end anywhere. What lasts and is
        about one kind of things (a right, a table) keeps the others from nothing.

        Raises:
            AlreadyRunning: Another process keeps house.
            DBAPIError: The first trouble, when all that could go has gone.
        """
        gone, troubles = Pruned(), list[DBAPIError]()
        self._write(require_tables, self._tables)
        for what, kind in self._kinds(troubles):
            try:
                for more in kind:
                    yield (gone := gone + more)
            except DBAPIError as error:
                if _is_about_all(error):
                    raise
                self._note(troubles, what, error)
        if troubles:
            raise troubles[0]

    def _kinds(self, troubles: list[DBAPIError]) -> Iterator[tuple[str, Iterator[Pruned]]]:
        """All there is to do, each by itself."""
        if self.archive_window is not None:
            yield "days of the archive", self._drop_days(self.archive_window, troubles)
        if self.archive_window:
            yield "days to come of the archive", self._make_days(troubles)
        for field, window, _, prune in self._rows():
            if window is not None:
                yield field, self._prune(field, prune, window)

    def _drop_days(self, window: float, troubles: list[DBAPIError]) -> Iterator[Pruned]:
        t, c = self._tables, self._clock
        for day in self._held(partitions.days_past, t, c, window):
            why_not = self._day(partitions.drop_day, day, "dropped", troubles)
            if why_not is None:
                yield Pruned(days_dropped=(day,))
            elif why_not == partitions.NOT_THE_OWNER:
                for count in self._until_few(pruning.prune_day, t, day):
                    yield Pruned(archive=count)

    def _make_days(self, troubles: list[DBAPIError]) -> Iterator[Pruned]:
        for day in self._held(partitions.days_to_make, self._tables, self._clock):
            if self._day(partitions.make_day, day, "made", troubles) is None:
                yield Pruned(days_made=(day,))

    def _prune(self, field: str, prune: Callable[..., int], window: float) -> Iterator[Pruned]:
        for count in self._until_few(prune, self._tables, self._clock, window):
            removed: dict[str, Any] = {field: count}
            yield Pruned(**removed)

    @staticmethod
    def _note(troubles: list[DBAPIError], what: str, error: DBAPIError) -> None:
        logger.error(
            "housekeeping left %s alone (%s); it goes on with the rest", what, brief(error)
        )
        troubles.append(error)

    def _until_few(self, prune: Callable[..., int], *of: Any) -> Iterator[int]:
        count = self.batch
        while count == self.batch:
            count = self._held(prune, *of, self.batch)
            if count:
                yield count

    def _day(
        self, verb: Callable[..., None], day: dt.date, done: str, troubles: list[DBAPIError]
    ) -> str | None:
        """None when the day was made or dropped; otherwise the SQLSTATE that says why not, now:
        it waits for a round. What a person has to see is among the troubles.
        """
        try:
            self._held(verb, self._tables, day)
        except DBAPIError as error:
            if why := partitions.why_later(error):
                logger.info("the archive's %s was not %s now: %s", day, done, why)
            elif partitions.sqlstate(error) == partitions.NOT_THE_OWNER:
                logger.warning(
                    "the archive's %s was not %s: this user does not own the archive; its rows "
                    "are removed one by one. Run `outbox-saga prune` as its owner to have days",
                    day,
                    done,
                )
            elif _is_about_all(error):
                raise
            else:
                self._note(troubles, f"the archive's {day}, not {done}", error)
            return partitions.sqlstate(error) or ""
        logger.info("the archive's %s was %s", day, done)
        return None

    def _held(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The verb's answer, in a transaction of the one runner."""

        def by_one(connection: sa.Connection) -> T:
            t, c = self._tables, self._clock
            if not one_runner.hold(connection, t, c, RUNNER, self._owner, LEASE):
                who = one_runner.holder(connection, t, RUNNER)
                raise AlreadyRunning(f"another process keeps house ({who}); leave it to that one")
            return verb(connection, *args, **kwargs)

        return self._write(by_one)

    def _write(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        engine = self.database.program_engine
        lay_wires(engine, self._on)
        with engine.begin() as connection:
            self._on(wire_of(connection))
            if self.database.pooler:
                limit_transaction(connection, self.database.deadline)
            limit_idle_transaction(connection, LEASE)
            return verb(connection, *args, **kwargs)

    def _on(self, wire: Wire | None) -> None:
        self._wire = wire

    def _cut_wire(self) -> None:
        wire = self._wire
        if wire is not None:
            wire.cut()

    # --- the loop ----------------------------------------------------------------------------

    async def run_once(
        self,
        stop: asyncio.Event | None = None,
        *,
        told: Callable[[Pruned], None] = lambda _: None,
    ) -> Pruned:
        """One round, in a thread, with a pause after each batch; ends early when `stop` is set.

        Args:
            told: Called after each batch.

        Raises:
            AlreadyRunning: Another process keeps house; nothing was removed since it began.
            DatabaseSilent: A batch was not removed in time; another round removes it.
        """
        self._thread.hurry(None)
        event = stop if stop is not None else asyncio.Event()
        stopped: asyncio.Task[bool] = asyncio.create_task(event.wait())
        stopped.add_done_callback(self._asked_to_stop)
        pruned = Pruned()
        round_ = self.batches()
        try:
            while not stopped.done():
                step = await self._thread.run(lambda: next(round_, None))
                if step is None:
                    break
                pruned = step
                told(pruned)
                await asyncio.wait({stopped}, timeout=self.pause)
        finally:
            stopped.cancel()
            await self._let_go()
        return pruned

    def _asked_to_stop(self, stopped: asyncio.Task[bool]) -> None:
        if not stopped.cancelled():
            self._thread.hurry()

    async def _let_go(self) -> None:
        t, c = self._tables, self._clock
        try:
            await self._thread.run(
                lambda: self._write(one_runner.let_go, t, c, RUNNER, self._owner)
            )
        except (DBAPIError, DatabaseSilent) as error:
            logger.warning("housekeeping could not say that it ended (%s)", brief(error))

    async def run(self, stop: asyncio.Event) -> None:
        """A round every `interval` seconds until `stop` is set; trouble ends a round, not more.

        Raises:
            SchemaMissing: Our tables are not there.
        """
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                try:
                    if pruned := await self.run_once(stop):
                        logger.info("housekeeping: %s", _told(pruned))
                except AlreadyRunning as error:
                    logger.debug("%s", error)
                except DatabaseSilent as error:
                    logger.warning("housekeeping: %s", error)
                except (SQLAlchemyError, CommitUnknown) as error:
                    # what lasts (a right it lacks, say) is no reason for who runs beside it to end
                    lasts = not passes(error)
                    logger.log(
                        logging.ERROR if lasts else logging.WARNING,
                        "housekeeping: trouble with the database (%s); the next round tries again",
                        brief(error),
                    )
                await asyncio.wait({stopped}, timeout=self.interval)
        finally:
            stopped.cancel()


def _is_about_all(error: DBAPIError) -> bool:
    """Whether nothing else would go now either; one kind alone may take too long."""
    return passes(error) and not ran_out_of_time(error)


def _told(pruned: Pruned) -> str:
    return (
        f"removed {pruned.inbox} notes of the inbox, {pruned.archive} archived messages, "
        f"{pruned.processes} dead processes, {pruned.replies} answers to requests, "
        f"{pruned.sagas} ended sagas, {pruned.barriers} notes of commands, "
        f"{len(pruned.days_dropped)} days of the archive; "
        f"made {len(pruned.days_made)} days"
    )
