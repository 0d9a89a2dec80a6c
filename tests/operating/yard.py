"""What the tests of operators' work share: dead letters of a relay that met a broker's no."""

from __future__ import annotations

from collections.abc import Callable, Collection

import sqlalchemy as sa

from outbox_saga.brokers.contract import ACCEPTED, Outcome, Refused
from outbox_saga.database import Database
from outbox_saga.dead_letters import DeadLetter, DeadLetters, PutBack
from outbox_saga.decisions import Decision
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import Unpublishable
from outbox_saga_relay.relay import Relay
from tests.relay.house import House, Recorder, word_of

ADA = Decision("ada", "the broker takes them now")


def refusing(*words: str, **codes: str) -> Callable[[Envelope], Outcome]:
    """A broker that never takes these words, and says which code for those that are named."""
    codes = {**dict.fromkeys(words, "too_large"), **codes}

    def answer(envelope: Envelope) -> Outcome:
        if code := codes.get(word_of(envelope)):
            return Refused(Unpublishable("never", code=code))
        return ACCEPTED

    return answer


async def die(house: House, *words: str, **codes: str) -> Relay:
    """These words become dead letters, and what may leave before them leaves.

    The relay that did it keeps its lease; those before it have given theirs back.
    """
    for other in house._relays:
        await other.store.lease.release()
    relay = house.relay(Recorder(refusing(*words, **codes)))
    for _ in range(10):
        await relay.run_once()
    found = {word_of(row.body) for row in house.dead()}
    wanted = {*words, *codes}
    assert wanted <= found, f"{wanted - found} did not die"
    return relay


def letters_of(database: Database) -> list[DeadLetter]:
    with database.begin() as connection:
        return DeadLetters(database).find(connection)


def letter_of(house: House, word: str) -> DeadLetter:
    """The dead letter that says this word."""
    with house.database.begin() as connection:
        letters = DeadLetters(house.database)
        (found,) = [
            letter
            for letter in letters.find(connection)
            if word_of(letters.body(connection, letter)) == word
        ]
        return found


def replay(house: House, word: str) -> PutBack:
    letters, seen = DeadLetters(house.database), letter_of(house, word)
    with house.database.begin() as connection:
        return letters.replay(connection, seen, ADA)


def audited(house: House) -> list[tuple[str, str]]:
    """Who did what, in order."""
    action = house.tables.operator_action
    return [(r.operator, r.action) for r in house.rows(action, action.c.at, action.c.id)]


def revisits(house: House) -> dict[int, int]:
    """The partitions whose owner has to look again, and from where."""
    lease = house.tables.partition_lease
    rows = house.rows(lease, lease.c.partition)
    return {row.partition: row.revisit for row in rows if row.revisit is not None}


def words(envelopes: Collection[Envelope]) -> list[str]:
    return [word_of(envelope) for envelope in envelopes]


def positions(house: House, table: sa.Table) -> dict[str, int]:
    return {word_of(row.body): row.position for row in house.rows(table, table.c.position)}
