"""Bodies too long for a page are read by themselves: a page has a bound in bytes, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa

from outbox_saga.queries import relay as verbs
from outbox_saga.queries.outbox_rows import OutboxRow, with_body
from outbox_saga.tables import Tables

PORTION = 1024 * 1024  # bytes


def is_left_out(row: OutboxRow) -> bool:
    """Whether the page came without the body of this row."""
    body: bytes | None = row.body
    return body is None


def _portions(positions: Sequence[int], sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """All of them, in order, of about `PORTION` bytes together each time."""
    portion: list[int] = []
    room = PORTION
    for position in positions:
        portion.append(position)
        room -= sizes.get(position, 0)
        if room <= 0:
            yield portion
            portion, room = [], PORTION
    if portion:
        yield portion


def with_bodies(
    connection: sa.Connection,
    tables: Tables,
    rows: Sequence[OutboxRow],
    room: int | None,
    full: bool,  # noqa: FBT001 - as the page had it
) -> tuple[list[OutboxRow], bool, int]:
    """The page with all its bodies, cut where they would be more than `room` bytes together.

    It is not cut before its first row, however long its body is; but none may be left, where all
    of them have been removed meanwhile. Also whether there may be more behind it, and its end: the
    position of the last row it had before that.
    """
    left_out = [row.position for row in rows if is_left_out(row)]
    if not left_out:
        return list(rows), full, rows[-1].position
    sizes = verbs.body_sizes(connection, tables, left_out)
    kept: list[OutboxRow] = []
    total = 0
    for row in rows:
        size = sizes.get(row.position, 0) if is_left_out(row) else len(row.body)
        if kept and room is not None and total + size > room:
            full = True
            break
        total += size
        kept.append(row)
    # a few at a time: while an answer is read, the driver has all of it, as text twice as long
    found: dict[int, bytes] = {}
    for some in _portions([row.position for row in kept if is_left_out(row)], sizes):
        found |= verbs.bodies(connection, tables, some)
    whole: list[OutboxRow] = []
    for row in kept:
        if not is_left_out(row):
            whole.append(row)
        elif row.position in found:
            whole.append(with_body(row, found[row.position]))
    return whole, full, kept[-1].position
