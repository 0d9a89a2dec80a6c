"""One runner at a time among all processes: a lease on a row of the process table.

A row, and no advisory lock: it holds over several transactions, through a pooler too, ends by
itself when its holder dies, and whoever looks at the processes sees who holds it.
"""

from __future__ import annotations

import json
import os
import socket
from uuid import UUID, uuid5

import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import for_update, make_sure_of_row
from outbox_saga.tables import Tables

_NAMESPACE = UUID("7d0b7a1e-3c52-5f5e-8a55-6f6e65727572")  # ours; the same in every release


def hold(
    connection: sa.Connection, tables: Tables, clock: Clock, name: str, owner: UUID, seconds: float
) -> bool:
    """True when this owner is the one runner of that name, for so many seconds from now on.

    The row stays locked until the transaction ends: what is done in it is done by one.
    """
    process, id_ = tables.process, uuid5(_NAMESPACE, name)
    look = for_update(
        connection,
        sa.select(process.c.detail, (process.c.until > clock.now()).label("held")).where(
            process.c.id == id_
        ),
    )
    held = connection.execute(look).first()
    if held is None:
        connection.execute(
            make_sure_of_row(connection, process).values(
                id=id_,
                kind=name,
                service="",
                host="",
                pid=0,
                started_at=clock.now(),
                seen_at=clock.now(),
                until=clock.now(-1.0),
                detail="{}",
            )
        )
        held = connection.execute(look).one()
    mine = json.loads(held.detail).get("owner") == str(owner)
    if held.held and not mine:
        return False
    begun = {} if held.held else {"started_at": clock.now()}
    connection.execute(
        sa.update(process)
        .where(process.c.id == id_)
        .values(
            host=socket.gethostname()[:64],
            pid=os.getpid(),
            seen_at=clock.now(),
            until=clock.now(seconds),
            detail=json.dumps({"owner": str(owner)}),
            **begun,
        )
    )
    return True


def let_go(
    connection: sa.Connection, tables: Tables, clock: Clock, name: str, owner: UUID
) -> None:
    """The next runner need not wait for the end of the lease."""
    process = tables.process
    connection.execute(
        sa.update(process)
        .where(
            process.c.id == uuid5(_NAMESPACE, name),
            process.c.detail == json.dumps({"owner": str(owner)}),
        )
        .values(until=clock.now())
    )


def holder(connection: sa.Connection, tables: Tables, name: str) -> str:
    """Who holds it, for people: host and process id."""
    process = tables.process
    row = connection.execute(
        sa.select(process.c.host, process.c.pid).where(process.c.id == uuid5(_NAMESPACE, name))
    ).first()
    return f"process {row.pid} on {row.host}" if row is not None else "nobody"
