"""Waiting messages for the people who look after a service: look, try again, discard.

messages = WaitingMessages(database)
for seen in await messages.list(state="dead"):
await messages.retry(seen, operator="ada", reason="the price list is back")
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.errors import WaitingChanged
from outbox_saga.queries import waiting_operators as verbs
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.waiting_operators import State, WaitingMessage
from outbox_saga.tables import Tables

__all__ = ["Note", "State", "WaitingMessage", "WaitingMessages"]

logger = logging.getLogger("outbox_saga.operators")


class Note(Protocol):
    """Writes down what somebody did, in the transaction that does it."""

    def __call__(
        self,
        connection: sa.Connection,
        tables: Tables,
        clock: Clock,
        *,
        operator: str,
        action: str,
        subject: str,
        reason: str,
        detail: dict[str, Any],
    ) -> None:
        """Whatever it raises keeps the action from being done."""
        ...


class WaitingMessages:
    """The messages of one database that wait for their handlers.

    An action is done if, and only if, the message is still as it was seen.

    Args:
        database: Whose.
        note: Writes each action down; None: it is only logged.
    """

    def __init__(self, database: Database, *, note: Note | None = None) -> None:
        self._database = database
        self._note = note

    async def list(
        self,
        *,
        consumer: str | None = None,
        key: str | None = None,
        state: State | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[WaitingMessage]:
        """Those in the order of their places, without bodies, from the place `after` on."""
        return await self._database.look(
            verbs.list_waiting,
            self._database.tables,
            self._database.clock,
            consumer=consumer,
            key=key,
            state=state,
            after=after,
            limit=limit,
        )

    async def show(self, position: int) -> WaitingMessage:
        """The one at this place, with headers and body.

        Raises WaitingChanged when there is none.
        """
        found = await self._database.look(
            verbs.read_waiting, self._database.tables, self._database.clock, position
        )
        if found is None:
            raise WaitingChanged(f"no message waits at {position} any more; list them again")
        return found

    async def retry(self, seen: WaitingMessage, *, operator: str, reason: str) -> None:
        """It gets one more attempt now, or when those before it in its key are gone.

        Raises WaitingChanged when it is not as it was seen, or is being handled.
        """
        await self._act(verbs.retry_now, "waiting.retry", seen, operator, reason)

    async def discard(self, seen: WaitingMessage, *, operator: str, reason: str) -> None:
        """It is gone for good and counts as handled; the later ones of its key go on without it.

        Raises WaitingChanged when it is not as it was seen, or is being handled.
        """
        await self._act(verbs.discard, "waiting.discard", seen, operator, reason)

    async def _act(
        self,
        verb: Callable[[sa.Connection, Tables, Clock, WaitingMessage], bool],
        action: str,
        seen: WaitingMessage,
        operator: str,
        reason: str,
    ) -> None:
        def act(connection: sa.Connection, tables: Tables, clock: Clock) -> None:
            if not verb(connection, tables, clock, seen):
                raise WaitingChanged(
                    f"the message at {seen.position} is not as you saw it, or is being handled; "
                    "look again"
                )
            if self._note is not None:
                self._note(
                    connection,
                    tables,
                    clock,
                    operator=operator,
                    action=action,
                    subject=str(seen.message_id),
                    reason=reason,
                    detail={
                        "consumer": seen.consumer,
                        "position": seen.position,
                        "attempts": seen.attempts,
                        "error_code": seen.error_code,
                    },
                )

        await self._database.run(act, self._database.tables, self._database.clock)
        logger.info(
            "%s by %s: message %s of consumer %s",
            action,
            operator,
            seen.message_id,
            seen.consumer,
        )
