"""What a participant knows of each step that it was asked for: one row, however it was asked.

The command and its undoing insert the same row, so whichever comes second finds it, at the same
moment too: the database lets one of them wait until the other one has committed.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from outbox_saga.commanding import Asked
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import for_update, insert_or_ignore
from outbox_saga.tables import Tables

State = Literal[
    "doing",  # in the transaction that carries it out; never committed
    "done",
    "refused",  # a business no: nothing was done
    "undone",
    "cancelled",  # undone before it came: whatever comes is refused
]


class Known(NamedTuple):
    """What was there.

    Args:
        answer: To the command, as JSON; None: there was none.
    """

    state: State
    answer: str | None


def enter(
    connection: sa.Connection, tables: Tables, clock: Clock, asked: Asked, state: State
) -> Known | None:
    """The row that was there, locked until the transaction ends; None: it is new, in this state.

    Waits for another transaction that is at the same step.
    """
    barrier = tables.barrier
    statement = insert_or_ignore(connection, barrier).values(
        saga_id=asked.saga,
        step=asked.step,
        generation=asked.generation,
        state=state,
        answer=None,
        updated_at=clock.now(),
    )
    if connection.execute(statement).rowcount:
        return None
    # locked: a plain read at MariaDB's REPEATABLE READ would not see what the INSERT ran into
    there = for_update(
        connection, sa.select(barrier.c.state, barrier.c.answer).where(_is(tables, asked))
    )
    row = connection.execute(there).one()
    return Known(row.state, row.answer)


def note(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    asked: Asked,
    state: State,
    answer: str | None = None,
) -> None:
    """The row is in this state now.

    Args:
        answer: To the command; None: it stays as it is.
    """
    values: dict[str, Any] = {"state": state, "updated_at": clock.now()}
    if answer is not None:
        values["answer"] = answer
    connection.execute(sa.update(tables.barrier).where(_is(tables, asked)).values(**values))


def _is(tables: Tables, asked: Asked) -> sa.ColumnElement[bool]:
    barrier = tables.barrier.c
    return sa.and_(
        barrier.saga_id == asked.saga,
        barrier.step == asked.step,
        barrier.generation == asked.generation,
    )
