"""The rows of the outbox as the relay reads them: as we wrote them, and as others did.

Rows may come from elsewhere, by SQL of somebody's own. One of which the key is no text or the id
is none is met by an error while a page is read; the page is then read again and each row decoded
by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from outbox_saga.envelopes import MAX_KEY, Envelope
from outbox_saga.errors import MessageRefused
from outbox_saga.ids import new_id
from outbox_saga.queries.dialects import family
from outbox_saga.queries.stored import as_stored, is_undecodable
from outbox_saga.tables import Tables

INLINE = 32 * 1024  # bytes: a body that is longer is read by itself, so that pages have a bound


class OutboxRow(NamedTuple):
    """One row of the outbox, not yet opened."""

    position: int
    id: UUID
    partition: int
    topic: str
    key: str | None
    headers: str
    body: bytes

    def envelope(self) -> Envelope:
        """The message as it was committed."""
        return Envelope.from_row(self.id, self.topic, self.key, self.headers, self.body)


class UnreadableRow(OutboxRow):
    """A row that is not as we write them: what could be read of it, to be kept as a dead letter.

    Its key is None where it was no text; an id that was none has been made up.

    Args:
        stored_id: As it stands in the table.
        reason: For people, without payload.
    """

    stored_id: Any
    reason: str

    def envelope(self) -> Envelope:
        """Raises MessageRefused."""
        raise MessageRefused("row", self.reason)


def with_body(row: OutboxRow, body: bytes) -> OutboxRow:
    """The same row with this body."""
    whole = row._replace(body=body)
    if isinstance(row, UnreadableRow) and isinstance(whole, UnreadableRow):
        whole.stored_id, whole.reason = row.stored_id, row.reason
    return whole


def rows_of(
    connection: sa.Connection, tables: Tables, statement: sa.Select[Any]
) -> list[OutboxRow]:
    """What the statement of a page gives; one row that others wrote does not fail the rest."""
    result = None
    try:
        result = connection.execute(statement)
        return [OutboxRow._make(row) for row in result]
    except (AttributeError, TypeError, ValueError):  # one of them is not as we write them
        pass
    except OperationalError as error:
        if not is_undecodable(error):
            raise
    finally:
        if result is not None:
            result.close()
    outbox, sqlite = tables.outbox, family(connection) == "sqlite"
    stored = {
        name: sa.cast(outbox.c[name], sa.LargeBinary)
        if sqlite
        else as_stored(connection, outbox.c[name])
        for name in ("id", "topic", "key", "headers", "body")
    }
    stored["body"] = sa.case((sa.func.length(outbox.c.body) <= INLINE, stored["body"]))
    columns = [stored.get(name, outbox.c[name]).label(name) for name in OutboxRow._fields]
    found = connection.execute(statement.with_only_columns(*columns))
    return [_row_apart(OutboxRow._make(row)) for row in found]


def _row_apart(row: OutboxRow) -> OutboxRow:
    """The row, decoded by itself."""
    reasons: list[str] = []
    text = {name: _text(name, getattr(row, name), reasons) for name in ("topic", "key", "headers")}
    readable_key = not any(reason.startswith("key") for reason in reasons)
    id_ = _id(row.id)
    if id_ is None:
        reasons.append(f"id is not 32 hexadecimal digits: {_shown(row.id)}")
    opened = row._replace(
        id=id_ or new_id(),
        topic=(text["topic"] or "").encode()[:MAX_KEY].decode(errors="ignore"),
        key=text["key"] if readable_key else None,
        headers=text["headers"] or "",
    )
    if not reasons:
        return opened
    unreadable = UnreadableRow._make(opened)
    unreadable.stored_id, unreadable.reason = row.id, "; ".join(reasons)
    return unreadable


def _text(name: str, value: Any, reasons: list[str]) -> str | None:
    if not isinstance(value, bytes | bytearray):
        return None if value is None else str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        told = f": {_shown(value)}" if name != "headers" else ""
        reasons.append(f"{name} is not UTF-8{told}")
        return value.decode(errors="backslashreplace")


def _id(value: Any) -> UUID | None:
    try:
        return UUID(value.decode() if isinstance(value, bytes) else value)
    except (AttributeError, TypeError, ValueError):
        return None


def _shown(value: Any) -> str:
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return ascii(text[:MAX_KEY])


def delete_spelt_otherwise(
    connection: sa.Connection, outbox: sa.Table, rows: Sequence[OutboxRow]
) -> int:
    """The same, of rows whose ids others have written: in capitals, with hyphens, or as nothing
    that is an id. They would be published again and again.
    """
    ids = {r.position: r.id for r in rows}
    stored = {r.position: r.stored_id for r in rows if isinstance(r, UnreadableRow)}
    id_ = as_stored(connection, outbox.c.id)
    found = connection.execute(
        sa.select(outbox.c.position, id_).where(outbox.c.position.in_(list(ids)))
    ).all()
    removed = 0
    for position, there in found:
        same = same_id(stored[position], there) if position in stored else False
        if same or _id(there) == ids[position]:
            gone = sa.delete(outbox).where(outbox.c.position == position, id_ == there)
            removed += connection.execute(gone).rowcount
    return removed


def same_id(one: Any, other: Any) -> bool:
    """Whether both are what stands in the table, one of them read as bytes perhaps."""
    first, second = (v.encode() if isinstance(v, str) else v for v in (one, other))
    return bool(first == second)
