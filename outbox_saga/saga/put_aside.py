"""Events of which one instance waits for its definition, while others have heard them.

The event is kept once more, for that instance alone and under an id of its own, as a message that
waits for its handler: it is tried again, and a dead letter in the end. It holds up no key but that
of its instance, whose later events stand behind it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.calling import told
from outbox_saga.envelopes import Envelope
from outbox_saga.ids import event_id
from outbox_saga.keeping import keep
from outbox_saga.queries import waiting
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.waiting import Failed
from outbox_saga.tables import Tables

logger = logging.getLogger("outbox_saga.saga")

FOR = "saga-instance"  # in the headers of one that was put aside: for whom
AGAIN = 1.0  # seconds until its second attempt


def instance_of(envelope: Envelope) -> UUID | None:
    """The only instance that the event is for; None: it was not put aside."""
    try:
        return UUID(envelope.headers.get(FOR, ""))
    except ValueError:
        return None


def put_aside(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    consumer: str,
    envelope: Envelope,
    instance: UUID,
    why: Exception | None,
) -> bool:
    """The event waits for this instance from the commit on.

    Args:
        why: The instance could not take it in; None: it only stands behind others that wait so.
            False then says that none does, and nothing was written.
    """
    own = replace(
        envelope,
        id=event_id(envelope.id, instance),
        key=_key(instance),
        headers={**envelope.headers, FOR: str(instance)},
    )
    failed = None if why is None else Failed("handler_failed", told(why), type(why).__name__)
    stored = waiting.store(connection, tables, clock, keep(consumer, own), failed, delay=AGAIN)
    if why is not None:
        logger.warning(
            "saga %s cannot take in message %s now (%s); it waits for that one alone",
            instance,
            envelope.id,
            type(why).__name__,
        )
    return stored != "free"


def stands_behind(
    connection: sa.Connection, tables: Tables, consumer: str, instance: UUID
) -> bool:
    """Whether an earlier event waits for this instance. Its row is locked."""
    return waiting.any_of_key(connection, tables, consumer, _key(instance))


def _key(instance: UUID) -> str:
    return f"saga {instance}"  # and not the id alone, which events of others may have
