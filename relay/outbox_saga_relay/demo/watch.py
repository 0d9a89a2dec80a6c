"""Looking at the run from outside: in the database, and at the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from uuid import UUID

import nats
import sqlalchemy as sa
from nats.js.errors import NotFoundError

from outbox_saga.database import READ_ONLY, Database
from outbox_saga.instances import ENDED


class DatabaseWatch:
    """Reads, and never waits for a writer.

    Args:
        database: The shop's.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._dead: set[UUID] = set()

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that takes no write lock on SQLite either."""
        return self.database.engine.execution_options(**{READ_ONLY: True}).begin()

    def ended(self, ids: Iterable[UUID]) -> list[UUID]:
        """Those of these instances that have ended."""
        saga = self.database.tables.saga
        with self.reading() as connection:
            return list(
                connection.scalars(
                    sa.select(saga.c.id).where(saga.c.id.in_(list(ids)), saga.c.state.in_(ENDED))
                )
            )

    def waiting_rows(self) -> int:
        """Messages that are committed and not yet known to be published."""
        with self.reading() as connection:
            outbox = self.database.tables.outbox
            return connection.scalar(sa.select(sa.func.count()).select_from(outbox)) or 0

    def leased_instances(self) -> int:
        """Unfinished instances under the live lease of a process that was not killed yet."""
        return sum(owner not in self._dead for owner in self._owners())

    def bury_owners(self) -> None:
        """Whoever holds a lease now is dead."""
        self._dead.update(self._owners())

    def _owners(self) -> list[UUID]:
        saga, now = self.database.tables.saga, self.database.clock.now()
        with self.reading() as connection:
            return list(
                connection.scalars(
                    sa.select(saga.c.owner).where(
                        saga.c.lease_until > now, saga.c.state.not_in(ENDED)
                    )
                )
            )


@dataclass(frozen=True, slots=True)
class StreamCount:
    """What a stream holds.

    Args:
        stored: Messages, each id once.
        delivered: Of those that consumers still have to acknowledge: handed to one of them.
        waiting: Of those: not yet handed to any.
    """

    stored: int
    delivered: int
    waiting: int


class NatsWatch:
    """Asks JetStream.

    Args:
        url: Of the server, without options.
        stream: Its name.
    """

    def __init__(self, url: str, stream: str) -> None:
        self._url = url
        self._stream = stream

    def count(self) -> StreamCount:
        """What is in the stream now; nothing, as long as nobody has published."""
        return asyncio.run(self._count())

    def delivered(self) -> int:
        """Messages that were delivered and are not acknowledged."""
        return self.count().delivered

    async def _count(self) -> StreamCount:
        client = await nats.connect(self._url)
        try:
            jetstream = client.jetstream()
            info = await jetstream.stream_info(self._stream)
            consumers = await jetstream.consumers_info(self._stream)
        except NotFoundError:
            return StreamCount(0, 0, 0)
        finally:
            await client.close()
        return StreamCount(
            stored=info.state.messages,
            delivered=sum(consumer.num_ack_pending or 0 for consumer in consumers),
            waiting=sum(consumer.num_pending or 0 for consumer in consumers),
        )
