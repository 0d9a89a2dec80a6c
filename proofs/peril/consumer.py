"""A service whose one effect is a row: `outbox-saga consume proofs.peril.consumer:service`.

Database and broker come from PERIL_DATABASE and PERIL_BROKER.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from outbox_saga import Event, HandlerContext, Service
from outbox_saga.testing.invariants import Violation, handled_once
from proofs.outages.relaying import END, ROOT
from proofs.scenes.world import TOPIC, TYPE, World

metadata = sa.MetaData()
effect = sa.Table(  # no key: a second effect of one message would be a second row
    "peril_effect",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("message_id", sa.String(40), nullable=False),
)


class Said(Event, topic=TOPIC, name=TYPE):
    """What `load` publishes."""

    n: int
    doomed: bool


service = Service(
    "peril",
    database=os.environ.get("PERIL_DATABASE", "sqlite:///unused.db"),
    broker=os.environ.get("PERIL_BROKER", "local"),
)


@service.on(Said, consumer="peril.effects")
async def said(handle: HandlerContext[Said]) -> None:
    """The effect."""
    await handle.session.execute(sa.insert(effect).values(message_id=str(handle.envelope.id)))


@contextmanager
def consuming(on: World) -> Iterator[subprocess.Popen[bytes]]:
    """The service's consumer, in a process of its own; it must end in good order."""
    with on.database.begin() as connection:
        metadata.create_all(connection)
    url = on.database.url.render_as_string(hide_password=False)
    told = {"PERIL_DATABASE": url, "PERIL_BROKER": on.broker_url}
    command = [sys.executable, "-m", "outbox_saga_relay", "consume"]
    command += ["--log-level", "error", "proofs.peril.consumer:service"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **told})
    try:
        yield process
        process.terminate()
        if process.wait(END):
            raise AssertionError(f"the consumer ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def effects(on: World) -> list[str]:
    """The id of the message of each effect that was committed."""
    with on.database.engine.connect() as connection:
        return list(connection.scalars(sa.select(effect.c.message_id)))


def check(on: World, committed: set[str]) -> list[Violation]:
    """I7: one effect of each message that was committed."""
    inbox = on.database.tables.inbox
    with on.database.engine.connect() as connection:
        rows = connection.execute(sa.select(inbox.c.consumer, inbox.c.message_id)).all()
    found = handled_once(
        [("peril.effects", id_) for id_ in effects(on)],
        [(row.consumer, str(row.message_id)) for row in rows],
    )
    missing = committed - {str(row.message_id) for row in rows}
    return found + [Violation("I7", f"message {id_}", "never handled") for id_ in missing]
