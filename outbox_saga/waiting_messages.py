"""Waiting messages for the people who look after a service: look, try again, discard.

messages = WaitingMessages(database)
for seen in await messages.list(state="dead"):
await messages.retry(seen, Decision("ada", "the price list is back"))
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.decisions import Decision
from outbox_saga.errors import SeenChanged
from outbox_saga.faults import tell_discarded
from outbox_saga.queries import waiting_operators as verbs
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.operators import note_action
from outbox_saga.queries.waiting_operators import State, WaitingMessage
from outbox_saga.tables import Tables

__all__ = ["State", "WaitingMessage", "WaitingMessages"]

logger = logging.getLogger("outbox_saga.operators")


class WaitingMessages:
    """The messages of one database that wait for their handlers.

    An action is done if, and only if, the message is still as it was seen; who and why is on
    record with it, in the transaction that does it.

    Args:
        database: Whose.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

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

        Raises SeenChanged when there is none.
        """
        found = await self._database.look(
            verbs.read_waiting, self._database.tables, self._database.clock, position
        )
        if found is None:
            raise SeenChanged(f"no message waits at {position} any more; list them again")
        return found

    async def retry(self, seen: WaitingMessage, decision: Decision) -> None:
        """It gets one more attempt now, or when those before it in its key are gone.

        Raises SeenChanged when it is not as it was seen, or is being handled.
        """
        await self._act(verbs.retry_now, "waiting.retry", seen, decision)

    async def discard(self, seen: WaitingMessage, decision: Decision) -> None:
        """It is gone for good and counts as handled; the later ones of its key go on without it.

        Whoever made a request of it is told (RequestFaulted, "discarded").

        Raises SeenChanged when it is not as it was seen, or is being handled.
        """
        await self._act(_discard, "waiting.discard", seen, decision)

    async def _act(
        self,
        verb: Callable[[sa.Connection, Tables, Clock, WaitingMessage], bool],
        action: str,
        seen: WaitingMessage,
        decision: Decision,
    ) -> None:
        def act(connection: sa.Connection, tables: Tables, clock: Clock) -> None:
            if not verb(connection, tables, clock, seen):
                raise SeenChanged(
                    f"the message at {seen.position} is not as you saw it, or is being handled; "
                    "look again"
                )
            detail = {
                "consumer": seen.consumer,
                "position": seen.position,
                "key": seen.key,
                "state": seen.state,
                "attempts": seen.attempts,
                "error_code": seen.error_code,
            }
            subject = f"message {seen.message_id}"
            note_action(connection, tables, clock, decision, action, subject, detail)

        await self._database.run(act, self._database.tables, self._database.clock)
        logger.info(
            "%s by %s: message %s of consumer %s",
            action,
            decision.operator,
            seen.message_id,
            seen.consumer,
        )


def _discard(
    connection: sa.Connection, tables: Tables, clock: Clock, seen: WaitingMessage
) -> bool:
    discarded = verbs.discard(connection, tables, clock, seen)
    if discarded is None:
        return False
    tell_discarded(connection, tables, discarded)
    return True
