"""What our tables and the broker's log say of messages, beside whether they arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.operators import Noted, noted_actions
from tests.crash.tables import OURS

UNTOLD = "?"  # the id in an intent whose message got its id after the handler had returned


class Intent(NamedTuple):
    """A message that a transaction was to publish, as its own rows say."""

    message_id: str
    key: str | None
    body: bytes


@dataclass(frozen=True)
class MessageFacts:
    """What there is beside the outbox.

    Args:
        entered: How often each message entered the outbox, and stayed.
        replays: Of each message, the highest count of replays that the broker saw.
        kept: How often each message stands in the archive.
        delayed: Ids of those that wait for their time.
        blocked: Partition, key and position of each key that waits or is parked.
        leased: Partitions that somebody owns.
        held: Rows of consumers that somebody has in hand.
        actions: What operators did.
        reports: What the callers of transactions were told, with the ids of their messages.
    """

    entered: Mapping[str, int]
    replays: Mapping[str, int]
    kept: Mapping[str, int]
    delayed: list[str]
    blocked: list[tuple[int, str, int]]
    leased: list[int]
    held: list[int]
    actions: list[Noted]
    reports: list[dict[str, Any]]

    def count(self, action: str, subject: str | None = None) -> int:
        """How often this is on record."""
        return sum(a.action == action and subject in (None, a.subject) for a in self.actions)


def resolved(intents: Sequence[Any], entries: Sequence[Any]) -> list[Intent]:
    """The intents, those without an id with that of the message of their bytes."""
    ids: dict[bytes, str] = {}
    for entry in entries:
        ids.setdefault(bytes(entry.body), str(UUID(entry.message_id)))
    return [
        Intent(
            row.message_id if row.message_id != UNTOLD else ids.get(row.body, f"? {row.body!r}"),
            row.key,
            row.body,
        )
        for row in intents
    ]


def look_at_messages(
    connection: sa.Connection,
    entries: Sequence[Any],
    delivered: Sequence[Mapping[str, Any]],
    reports: Sequence[dict[str, Any]],
) -> MessageFacts:
    """All of it, now."""
    replays: dict[str, int] = {}
    for line in delivered:
        replays[line["id"]] = max(replays.get(line["id"], 0), line["replay"])
    archive, blocked = OURS.archive, OURS.blocked_key
    lease, waiting = OURS.partition_lease, OURS.inbox_waiting
    return MessageFacts(
        entered=Counter(str(UUID(entry.message_id)) for entry in entries),
        replays=replays,
        kept=Counter(str(id_) for id_ in connection.scalars(sa.select(archive.c.id))),
        delayed=[str(id_) for id_ in connection.scalars(sa.select(OURS.delayed.c.id))],
        blocked=[(r.partition, r.key, r.position) for r in connection.execute(sa.select(blocked))],
        leased=list(
            connection.scalars(sa.select(lease.c.partition).where(lease.c.owner.is_not(None)))
        ),
        held=list(
            connection.scalars(sa.select(waiting.c.position).where(waiting.c.owner.is_not(None)))
        ),
        actions=noted_actions(connection, OURS, limit=1000),
        reports=list(reports),
    )
