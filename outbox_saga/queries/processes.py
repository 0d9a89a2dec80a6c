"""Which processes are alive: rows that each renews, by the database's clock."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.payloads import storable
from outbox_saga.queries.clock import Clock
from outbox_saga.tables import Tables

MAX_NAME = 255  # bytes a name may have in its column


@dataclass(frozen=True, slots=True)
class Process:
    """One start of one program.

    Args:
        id: Random, of this start: a restarted process is somebody else.
        kind: relay, orchestrator, consumer.
        service: Whose.
    """

    id: UUID
    kind: str
    service: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


def beat(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    process: Process,
    seconds: float,
    detail: Mapping[str, object],
) -> None:
    """The process counts as alive for so many seconds more.

    Args:
        detail: What it has to say of itself, as plain JSON values; never a payload.
    """
    table = tables.process
    changing = {
        "seen_at": clock.now(),
        "until": clock.now(seconds),
        "detail": json.dumps(dict(detail)),
    }
    if not connection.execute(
        sa.update(table).where(table.c.id == process.id).values(**changing)
    ).rowcount:
        connection.execute(
            sa.insert(table).values(
                id=process.id,
                kind=process.kind,
                service=storable(process.service, MAX_NAME // 4),
                host=storable(process.host, MAX_NAME // 4),
                pid=process.pid,
                started_at=clock.now(),
                **changing,
            )
        )


def alive(connection: sa.Connection, tables: Tables, clock: Clock, kind: str) -> int:
    """How many processes of this kind are alive."""
    table = tables.process
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(table)
        .where(table.c.kind == kind, table.c.until > clock.now())
    ).scalar_one()


def left(connection: sa.Connection, tables: Tables, id_: UUID) -> None:
    """The process has ended in good order."""
    connection.execute(sa.delete(tables.process).where(tables.process.c.id == id_))
