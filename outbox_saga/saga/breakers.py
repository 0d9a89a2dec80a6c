"""Breakers for the people who look after a service: how each stands, and closing one by hand.

breakers = Breakers(service.database)
for stand in await breakers.list():
    if stand.state != "closed":
        await breakers.reset(stand.name, Decision("ada", "the provider is back"))
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import sqlalchemy as sa

from outbox_saga.breaker import Stand
from outbox_saga.database import Database
from outbox_saga.decisions import Decision
from outbox_saga.errors import SeenChanged
from outbox_saga.queries import breakers as rows
from outbox_saga.queries.operators import note_action

__all__ = ["Breakers", "Stand"]

logger = logging.getLogger("outbox_saga.operators")


class Breakers:
    """The breakers of one database, for those who decide about them.

    Args:
        database: Which all processes of the service share.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self) -> Sequence[Stand]:
        """Every breaker that has ever counted a failure, by name; any other is closed."""
        database = self._database
        return await database.look(rows.read, database.tables, database.clock)

    async def reset(self, name: str, decision: Decision) -> None:
        """It is closed, and no failure is counted.

        What was held back goes when its own time comes: at most a tenth of the breaker's time
        after a probe would have been let through.

        Who and why is on record with it, in the transaction that does it.

        Raises:
            SeenChanged: No breaker of this name has ever counted a failure.
        """
        database = self._database
        tables, clock = database.tables, database.clock

        def reset(connection: sa.Connection) -> None:
            known = {stand.name for stand in rows.read(connection, tables, clock, [name])}
            if name not in known:
                raise SeenChanged(
                    f"no breaker called {name!r} has ever counted a failure here; list them"
                )
            stand = rows.lock(connection, tables, clock, name)
            rows.note(connection, tables, clock, stand.closed())
            detail = {"state": stand.state, "failures": stand.failures, "until": stand.until}
            note_action(
                connection, tables, clock, decision, "breaker.reset", f"breaker {name}", detail
            )

        await database.run(reset)
        logger.info("breaker.reset by %s: breaker %s", decision.operator, name)
