"""A process that handles the messages it is told, and says what became of each.

    python deliverer.py DATABASE_URL ID...

It says "ready", waits for a line, handles every id once, and says for how many
it was the first.
"""

from __future__ import annotations

import asyncio
import sys
from uuid import UUID

from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.handler_context import HandlerContext
from outbox_saga.inbox import handle_once
from outbox_saga.messages import Event
from outbox_saga.queries.dialects import is_transient
from outbox_saga.worker_threads import WorkerThreads


class Said(Event, topic="talk"):
    word: str


async def main(url: str, ids: list[UUID]) -> None:
    import sqlalchemy as sa

    async def note(handle: HandlerContext[Said]) -> None:
        await handle.session.execute(
            sa.text("insert into till (note) values (:note)"), {"note": handle.message.word}
        )

    database = Database(url)
    new = 0
    with WorkerThreads(1, "test") as threads:
        await database.look(lambda connection: connection.exec_driver_sql("select 1").all())
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for id_ in ids:
            envelope = Envelope(id_, "talk", None, "Said", Said(word=str(id_)).to_body())
            while True:
                try:
                    arrival = await handle_once(
                        database, threads, "listener", envelope, Said, note, source="test"
                    )
                except Exception as error:
                    if not is_transient(error):
                        raise
                else:
                    new += arrival == "new"
                    break
    await database.close()
    sys.stdout.write(f"{new}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], [UUID(id_) for id_ in sys.argv[2:]]))
