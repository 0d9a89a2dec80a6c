"""The relay's ear: LISTEN on a connection of its own, which is in no transaction.

A hint that is lost costs latency: the relay looks by itself in any case. So everything here that
fails is told once, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from outbox_saga.database_urls import sync_url
from outbox_saga.hints import channel
from outbox_saga.ids import new_id
from outbox_saga.retries import Retry
from outbox_saga_relay.wire import Wire

logger = logging.getLogger("outbox_saga.relay")

HEARTBEAT = 10.0  # seconds: a connection that says nothing for so long is asked
ANSWER = 5.0  # seconds for an answer
AGAIN = Retry(max_attempts=1_000_000, initial=0.2, max_delay=15.0)
DEAF = 2.0  # seconds within which it has to hear itself


class Listener:
    """Calls `hear` for every hint, and once after each reconnect, for what was missed.

    Args:
        url: A direct one: through pgbouncer in transaction mode nothing arrives.
        schema: Of the outbox.
        hear: To be called in the event loop.
    """

    def __init__(self, url: sa.URL, schema: str | None, hear: Callable[[], None]) -> None:
        self._url = sync_url(url)
        name = channel(schema).replace('"', '""')
        self._channel = f'"{name}"'
        self._hear = hear
        self.seed = str(new_id())  # of its pauses: all of them lose a database at one moment
        self.heard = 0
        self.connections = 0

    @staticmethod
    def can_listen(url: sa.URL) -> bool:
        """Whether this database has LISTEN."""
        return url.get_backend_name() == "postgresql"

    async def run(self) -> None:
        """Until cancelled, or until it is clear that nothing ever arrives here."""
        import psycopg

        failures = 0
        while True:
            try:
                # not wait_for: before Python 3.12 it forgets a cancellation that comes while the
                # attempt fails, and this would go on for ever
                async with asyncio.timeout(ANSWER):
                    connection = await self._connect()
            except (psycopg.Error, OSError, TimeoutError) as error:
                failures += 1
                self._tell(failures, error)
                await asyncio.sleep(AGAIN.delay(failures, seed=self.seed))
                continue
            try:
                self.connections += 1
                if self.connections == 1 and not await self._hears_itself(connection):
                    logger.warning(
                        "LISTEN hears nothing on this connection (pgbouncer in transaction "
                        "mode?): give a direct URL for it; the relay looks by itself"
                    )
                    return
                failures = 0
                self._hear()
                await self._listen(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                failures += 1
                self._tell(failures, error)
            finally:
                with contextlib.suppress(Exception):  # it is gone in any case
                    async with asyncio.timeout(ANSWER):
                        await connection.close()
            await asyncio.sleep(AGAIN.delay(max(1, failures), seed=self.seed))

    async def _connect(self) -> Any:
        import psycopg

        dialect = self._url.get_dialect()()
        _, arguments = dialect.create_connect_args(self._url)
        connection = await psycopg.AsyncConnection.connect(
            **arguments, autocommit=True, prepare_threshold=None
        )
        try:
            await _say(connection, f"LISTEN {self._channel}".encode())
        except BaseException:  # cancelled, too: nobody else knows of it yet
            await connection.close()
            raise
        return connection

    async def _hears_itself(self, connection: Any) -> bool:
        async with asyncio.timeout(ANSWER):
            other = await self._connect()
        try:
            await _say(other, f"NOTIFY {self._channel}".encode())
            async for _ in connection.notifies(timeout=DEAF, stop_after=1):
                return True
            return False
        finally:
            await other.close()

    async def _listen(self, connection: Any) -> None:
        while True:
            heard = False
            async for _ in connection.notifies(timeout=HEARTBEAT, stop_after=1):
                heard = True
                self.heard += 1
                self._hear()
            if not heard:
                # a half-open socket says nothing for ever
                await _say(connection, b"SELECT 1")

    @staticmethod
    def _tell(failures: int, error: BaseException) -> None:
        log = logger.warning if failures == 1 else logger.debug
        log("the relay cannot be told at once (%s); it looks by itself", type(error).__name__)


async def _say(connection: Any, statement: bytes) -> None:
    """Waits for the answer, and not for ever; after that, or cancelled, the connection is gone.

    Cancelled itself, psycopg asks the server to cancel the statement and waits for its answer,
    which one that stands still gives no more than the first.
    """
    wire = Wire(connection)
    said = asyncio.ensure_future(connection.execute(statement))
    try:
        await asyncio.wait({said}, timeout=ANSWER)
    finally:
        if not said.done():
            wire.cut()
        wire.close()
        told = (await asyncio.gather(said, return_exceptions=True))[0]
    if isinstance(told, BaseException):
        raise told
