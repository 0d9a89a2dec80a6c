"""Writers and a relay in a contest for the order of keys: plays for the explorer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from outbox_saga.envelopes import Envelope, seal
from outbox_saga.queries.clock import DATABASE_CLOCK
from outbox_saga.queries.outbox import lock_class, lock_number, write_messages
from outbox_saga.queries.relay import OutboxRow, Wanted, delete_published, read_page
from outbox_saga.tables import PARTITIONS, tables_in
from outbox_saga.testing.interleaving import Play, Point, Run
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said

Words = Sequence[tuple[str, str]]  # (key, word) in the order of publishing


class Contest:
    """One database, writers that publish words, and a relay that publishes them onwards."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, isolation_level="READ COMMITTED")
        self.tables = tables_in(None)
        self.committed: list[Words] = []  # in the order of the commits
        self.published: list[tuple[str, str]] = []  # what the broker got, duplicates included

    # --- actors ---------------------------------------------------------------------------------

    def writer(self, words: Words, *, key_locks: bool = True) -> Callable[[], None]:
        """One transaction that publishes these words; its steps are the write and the commit."""

        def write_unlocked(connection: sa.Connection, envelopes: list[Any]) -> None:
            write_messages(connection, self.tables, envelopes, key_locks=False)

        def work() -> None:
            with self.engine.connect() as connection, connection.begin() as transaction:
                uow = UnitOfWork(connection)
                for key, word in words:
                    if key_locks:
                        uow.publish(Said(word=word), key=key)
                    else:
                        uow.keep(seal(Said(word=word), key=key), write_unlocked)
                self._commit(transaction, words)

        return work

    def careless_writer(self, words: Words, *, in_order: bool) -> Callable[[], None]:
        """As `writer`, but it takes the locks one by one: sorted, or as the keys come."""

        def write(connection: sa.Connection, envelopes: list[Envelope]) -> None:
            numbers = list(dict.fromkeys(lock_number(e.key) for e in envelopes if e.key))
            for number in sorted(numbers) if in_order else numbers:
                self._lock(connection, number)
            write_messages(connection, self.tables, envelopes, key_locks=False)

        def work() -> None:
            with self.engine.connect() as connection, connection.begin() as transaction:
                uow = UnitOfWork(connection)
                for key, word in words:
                    uow.keep(seal(Said(word=word), key=key), write)
                self._commit(transaction, words)

        return work

    def relay(self, passes: int) -> Callable[[], None]:
        """Reads a page, publishes it, removes it; its steps are the reading and the removing."""

        def work() -> None:
            for _ in range(passes):
                if page := self.publish_page():
                    with self.engine.begin() as connection:
                        delete_published(connection, self.tables, page)

        return work

    def publish_page(self) -> list[OutboxRow]:
        """The oldest rows, read and published; removing them comes after."""
        with self.engine.connect() as connection:
            page = read_page(
                connection,
                self.tables,
                DATABASE_CLOCK,
                Wanted(range(PARTITIONS), 100, look_for_blocked=False),
            )
        self.published += [(row.key or "", json.loads(row.body)["word"]) for row in page]
        return page

    def _commit(self, transaction: sa.RootTransaction, words: Words) -> None:
        transaction.commit()
        self.committed.append(words)  # in the same step

    def _lock(self, connection: sa.Connection, number: int) -> None:
        if connection.dialect.name == "postgresql":
            statement = (
                f"SELECT pg_advisory_xact_lock({lock_class(connection, self.tables)}, {number})"
            )
        else:
            table = self.tables.key_lock.name
            statement = f"SELECT number FROM {table} WHERE number = {number} FOR UPDATE"
        connection.exec_driver_sql(statement).fetchall()

    # --- the play -------------------------------------------------------------------------------

    def play(self, actors: Mapping[str, Callable[[], object]]) -> Play:
        """A fresh start for these actors."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(self.tables.outbox))
        self.committed, self.published = [], []
        return Play(actors=actors, check=self.check)

    def check(self, run: Run) -> str | None:
        """What is lost, invented, or out of order among first deliveries of a key."""
        if run.errors and not run.deadlock:
            return f"errors: {run.errors}"
        self.publish_page()  # the next relay finds the rest
        wanted = _by_key(pair for words in self.committed for pair in words)
        got = _by_key(dict.fromkeys(self.published))
        if wanted != got:
            return f"committed {wanted}, first deliveries {got}"
        return None


def _by_key(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, word in pairs:
        found.setdefault(key, []).append(word)
    return found


def least_steps(point: Point) -> bool:
    """Writers: write, commit. Relay: read, remove.

    What is left out moves nothing that another actor can see: MariaDB's INSERT after its locks,
    the end of a transaction that only read, and the relay's commit, which it does not wait for.
    """
    statement = point.statement.lstrip()
    if point.actor.startswith("relay"):
        return point.kind == "execute" and statement.startswith(("SELECT", "DELETE"))
    if point.kind == "execute":
        return not (statement.startswith("INSERT") and "VALUES" in statement) or not _locks(point)
    return point.kind == "commit"


def _locks(point: Point) -> bool:
    """Whether this writer takes locks before it inserts; those named `bare` do not."""
    return not point.actor.startswith("bare")
