"""What no broker took, and what waits behind it: found, counted, shown."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.outbox import partition_of
from outbox_saga.tables import Tables


@dataclass(frozen=True, slots=True)
class Matching:
    """Which dead letters; what is None says nothing.

    Args:
        topic: Of this topic.
        key: Of this key.
        code: With this error code.
        since: That died at this moment or later.
        until: That died before this moment.
    """

    topic: str | None = None
    key: str | None = None
    code: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None


ALL = Matching()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter as it was seen, without its body.

    Args:
        position: Its place in the order of the outbox, which a replay gives back to it.
        headers: The metadata as it is stored, as JSON.
        size: Of the body, in bytes.
        created_at: When it was published by the service.
        died_at: When it became a dead letter, by the database's clock.
        attempts: Failed ones, as the relay counted them.
        error_code: Short and stable.
        error: For people.
        error_class: Of what was raised, where there was an exception.
        trace: Of it; without values.
        parked: Its key is parked at its position: no later message of the key has left since.
    """

    id: UUID
    position: int
    partition: int
    topic: str
    key: str | None
    headers: str
    size: int
    created_at: dt.datetime
    died_at: dt.datetime
    attempts: int
    error_code: str
    error: str
    error_class: str | None
    trace: str | None
    parked: bool

    @property
    def version(self) -> str:
        """What changes whenever the letter does: an action that names it acts on this, or not."""
        return f"{self.attempts}-{round(self.died_at.timestamp() * 1_000_000):x}"

    @property
    def keeps_its_place(self) -> bool:
        """A replay comes before all later messages of its key; without a key there is no order."""
        return self.key is None or self.parked


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters of one topic and error code.

    Args:
        overtaken: Of them, those whose key is not parked for them: later ones may have left.
    """

    topic: str
    error_code: str
    count: int
    first: dt.datetime
    last: dt.datetime
    overtaken: int


@dataclass(frozen=True, slots=True)
class PutBack:
    """What became of a letter that was replayed.

    Args:
        letter: As it was.
        waits_behind: Where its key is parked for another dead letter, which it now waits for.
    """

    letter: DeadLetter
    waits_behind: int | None


def _parked(tables: Tables) -> sa.ColumnElement[bool]:
    letter, blocked = tables.dead_letter, tables.blocked_key
    return sa.exists().where(
        blocked.c.partition == letter.c.partition,
        blocked.c.key == letter.c.key,
        blocked.c.position == letter.c.position,
        blocked.c.until.is_(None),
    )


def _where(tables: Tables, matching: Matching) -> list[sa.ColumnElement[bool]]:
    letter = tables.dead_letter
    wanted = {"topic": matching.topic, "key": matching.key, "error_code": matching.code}
    found = [letter.c[name] == value for name, value in wanted.items() if value is not None]
    if matching.since is not None:
        found.append(letter.c.died_at >= matching.since)
    if matching.until is not None:
        found.append(letter.c.died_at < matching.until)
    return found


def find_letters(
    connection: sa.Connection,
    tables: Tables,
    matching: Matching = ALL,
    *,
    after: int | None = None,
    limit: int = 100,
    ids: Sequence[UUID] | None = None,
) -> list[DeadLetter]:
    """Dead letters in the order of their positions, which is the order of each key.

    Two may stand at one position: a promoted standby uses some again. They are never parted, so
    that a position says where the next page begins.

    Args:
        after: The position of the last one that was read.
        limit: Letters; more only if others stand at the position of the last one.
        ids: Only these.
    """
    letter = tables.dead_letter
    kept = [c for c in letter.c if c.name != "body"]
    statement = (
        sa.select(
            *kept, sa.func.length(letter.c.body).label("size"), _parked(tables).label("parked")
        )
        .where(*_where(tables, matching))
        .order_by(letter.c.position, letter.c.id)
    )
    if after is not None:
        statement = statement.where(letter.c.position > after)
    if ids is not None:
        statement = statement.where(letter.c.id.in_(ids))
    found = list(connection.execute(statement.limit(limit)))
    if len(found) == limit:
        last = letter.c.position == found[-1].position
        known = [row.id for row in found if row.position == found[-1].position]
        found += connection.execute(statement.where(last, letter.c.id.not_in(known)))
    return [
        DeadLetter(**{**row._mapping, "parked": bool(row.parked)})  # noqa: SLF001 - public, in SQLAlchemy's words
        for row in found
    ]


def count_letters(
    connection: sa.Connection, tables: Tables, matching: Matching = ALL
) -> list[Group]:
    """How many there are of each topic and error code, the most first."""
    letter = tables.dead_letter
    overtaken = sa.and_(letter.c.key.is_not(None), ~_parked(tables))
    statement = (
        sa.select(
            letter.c.topic,
            letter.c.error_code,
            sa.func.count().label("letters"),
            sa.func.min(letter.c.died_at).label("first"),
            sa.func.max(letter.c.died_at).label("last"),
            sa.func.sum(sa.case((overtaken, 1), else_=0)).label("overtaken"),
        )
        .where(*_where(tables, matching))
        .group_by(letter.c.topic, letter.c.error_code)
        .order_by(sa.desc("letters"), letter.c.topic, letter.c.error_code)
    )
    return [
        Group(r.topic, r.error_code, r.letters, r.first, r.last, int(r.overtaken))
        for r in connection.execute(statement)
    ]


def read_body(connection: sa.Connection, tables: Tables, id_: UUID) -> bytes | None:
    """The bytes of a dead letter as they were committed; None when it is gone."""
    letter = tables.dead_letter
    body: bytes | None = connection.execute(
        sa.select(letter.c.body).where(letter.c.id == id_)
    ).scalar_one_or_none()
    return body


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """A key whose later messages wait until a person decides.

    Args:
        position: At which it is parked.
        letter: The id of the dead letter that it waits for; None: that one was discarded.
        error_code: For which it was parked.
    """

    key: str
    position: int
    letter: UUID | None
    error_code: str


def parked_keys(
    connection: sa.Connection, tables: Tables, *, after: int | None = None, limit: int = 100
) -> list[ParkedKey]:
    """The keys that are parked, by the positions at which they are, from behind `after` on."""
    blocked, letter = tables.blocked_key, tables.dead_letter
    same = sa.and_(letter.c.position == blocked.c.position, letter.c.key == blocked.c.key)
    statement = (
        sa.select(blocked.c.key, blocked.c.position, letter.c.id, blocked.c.error_code)
        .select_from(blocked.outerjoin(letter, same))
        .where(blocked.c.until.is_(None), blocked.c.key != "")
        .order_by(blocked.c.position)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(blocked.c.position > after)
    return [ParkedKey(*row) for row in connection.execute(statement)]


def parks_of(connection: sa.Connection, tables: Tables, key: str) -> list[int]:
    """The positions at which this key is parked; none when it is not."""
    blocked = tables.blocked_key
    statement = (
        sa.select(blocked.c.position)
        .where(
            blocked.c.partition == partition_of_key(key),
            blocked.c.key == key,
            blocked.c.until.is_(None),
        )
        .order_by(blocked.c.position)
    )
    return list(connection.scalars(statement))


def waiting_behind(connection: sa.Connection, tables: Tables, key: str) -> int:
    """How many messages of this key wait in the outbox."""
    outbox = tables.outbox
    return connection.execute(
        sa.select(sa.func.count()).where(
            outbox.c.partition == partition_of_key(key), outbox.c.key == key
        )
    ).scalar_one()


def partition_of_key(key: str) -> int:
    """Of all messages of the key."""
    return partition_of(key, UUID(int=0))  # the id decides only for messages without a key
