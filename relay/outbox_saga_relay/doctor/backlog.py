"""Every database: what waits, and for whom; never what it says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, Final

import sqlalchemy as sa

from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import Check, Found
from outbox_saga_relay.times import spoken

_COUNTED = 100_000  # rows; counting millions of them would be a load of its own
_NAMED = 5


def _count(case: DatabaseCase, table: sa.Table, column: str, *where: Any) -> tuple[int, str]:
    """How many rows there are, and how to say it."""
    some = sa.select(table.c[column]).where(*where).limit(_COUNTED + 1).subquery()
    count = case.connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
    return count, f"more than {_COUNTED:,}" if count > _COUNTED else f"{count:,}"


def _age(case: DatabaseCase, moment: dt.datetime | None) -> float:
    if moment is None:
        return 0.0
    return (case.database.clock.read(case.connection) - moment).total_seconds()


def pending(case: DatabaseCase) -> Iterator[Found]:
    """The outbox is being emptied."""
    outbox, lease = case.tables.outbox, case.tables.partition_lease
    _, many = _count(case, outbox, "position")
    # by position: an index, where the oldest created_at would be a walk through all of them
    oldest = case.connection.execute(
        sa.select(outbox.c.created_at).order_by(outbox.c.position).limit(1)
    ).scalar_one_or_none()
    if oldest is None:
        return
    age = _age(case, oldest)
    now = case.database.clock.now()
    held = case.connection.execute(
        sa.select(lease.c.partition).where(lease.c.until > now).limit(1)
    ).first()
    if held is None:
        yield Found(
            "warning",
            f"{many} messages wait in the outbox, the first for {spoken(age)}, and no relay has "
            "a lease",
            "start one: outbox-saga relay --database-url … --broker …",
        )
        return
    late = age >= case.limits.long
    yield Found(
        "warning" if late else "info",
        f"{many} messages wait in the outbox, the first for {spoken(age)}",
        "look at the relay's log, at parked keys and at the broker" if late else "nothing",
    )


def delayed(case: DatabaseCase) -> Iterator[Found]:
    """Delayed messages enter the outbox when they are due."""
    table = case.tables.delayed
    overdue = case.database.clock.now(-case.limits.long)
    count, many = _count(case, table, "id", table.c.due_at < overdue)
    if count:
        yield Found(
            "warning",
            f"{many} delayed messages are due since more than {spoken(case.limits.long)}",
            "start a relay, which lets them in",
        )


def blocked_keys(case: DatabaseCase) -> Iterator[Found]:
    """No key is parked."""
    blocked = case.tables.blocked_key
    parked, many = _count(case, blocked, "position", blocked.c.until.is_(None))
    if parked:
        yield Found(
            "info",
            f"{many} keys are parked: their later messages wait until a person decides",
            "look at them (outbox-saga dead-letter keys) and at their dead letters; replay or "
            "discard those, and unpark the keys",
        )
    waiting, many = _count(case, blocked, "position", blocked.c.until.is_not(None))
    if waiting:
        yield Found(
            "info",
            f"{many} keys wait for another attempt of a message",
            "nothing; if it lasts, look at error_code in outbox_saga_blocked_key",
        )


def _by_code(case: DatabaseCase, table: sa.Table, where: Any) -> str:
    """The most frequent error codes and their counts, of the rows that are counted at all."""
    some = sa.select(table.c.error_code).where(where).limit(_COUNTED).subquery()
    count = sa.func.count()
    rows = case.connection.execute(
        sa.select(some.c.error_code, count)
        .group_by(some.c.error_code)
        .order_by(count.desc(), some.c.error_code)
        .limit(_NAMED)
    )
    return ", ".join(f"{number} {code}" for code, number in rows)


def dead_letters(case: DatabaseCase) -> Iterator[Found]:
    """No message was given up."""
    letter, waiting = case.tables.dead_letter, case.tables.inbox_waiting
    given_up = waiting.c.until.is_(None)
    count, many = _count(case, letter, "id")
    if count:
        yield Found(
            "info",
            f"{many} dead letters that no broker took ({_by_code(case, letter, sa.true())})",
            "decide: replay or discard them",
        )
    count, many = _count(case, waiting, "position", given_up)
    if count:
        yield Found(
            "info",
            f"{many} dead letters that no handler took ({_by_code(case, waiting, given_up)})",
            "mend the handler, then have them handled again, or discard them",
        )


def not_handled(case: DatabaseCase) -> Iterator[Found]:
    """What is to be handled again is, when it is time."""
    waiting = case.tables.inbox_waiting
    overdue = waiting.c.until < case.database.clock.now(-case.limits.long)
    rows = case.connection.execute(
        sa.select(waiting.c.consumer, sa.func.count())
        .where(overdue)
        .group_by(waiting.c.consumer)
        .order_by(sa.func.count().desc(), waiting.c.consumer)
        .limit(_NAMED)
    )
    for consumer, number in rows:
        yield Found(
            "warning",
            f"{number:,} messages that consumer {consumer} is to handle again are due since more "
            f"than {spoken(case.limits.long)}: the broker has forgotten them",
            "run a service that has this consumer (outbox-saga consume SERVICE), or discard them "
            "with outbox-saga waiting",
        )


def stuck_sagas(case: DatabaseCase) -> Iterator[Found]:
    """No saga needs a person, and each that is due has an orchestrator."""
    saga = case.tables.saga
    count = sa.func.count()
    for name, number in case.connection.execute(
        sa.select(saga.c.name, count)
        .where(saga.c.state == "stuck")
        .group_by(saga.c.name)
        .order_by(count.desc(), saga.c.name)
        .limit(_NAMED)
    ):
        yield Found(
            "info",
            f"{number:,} sagas {name} are stuck",
            "read their reason in outbox_saga_saga, and decide",
        )
    due = saga.c.due_at < case.database.clock.now(-case.limits.long)
    late, many = _count(case, saga, "id", due)
    if late:
        yield Found(
            "warning",
            f"{many} sagas are due since more than {spoken(case.limits.long)}",
            "start an orchestrator that knows them: outbox-saga orchestrate SERVICE",
        )


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "backlog.outbox",
        "how much waits, since when, and whether a relay has a lease",
        "What waits has not been told to anybody.",
        ("warning", "info"),
        pending,
    ),
    Check(
        "backlog.delayed",
        "delayed messages that are long due",
        "They are late.",
        ("warning",),
        delayed,
    ),
    Check(
        "backlog.blocked_keys",
        "keys that are parked, or wait for another attempt",
        "Their later messages wait behind one that failed.",
        ("info",),
        blocked_keys,
    ),
    Check(
        "backlog.dead_letters",
        "messages that no broker, or no handler, took",
        "They reach nobody until a person decides.",
        ("info",),
        dead_letters,
    ),
    Check(
        "backlog.waiting",
        "messages that are long due to be handled again",
        "They wait for a consumer that nobody runs: it may have another name now.",
        ("warning",),
        not_handled,
    ),
    Check(
        "backlog.sagas",
        "sagas that are stuck, or long due",
        "They go on only when a person decides, or an orchestrator runs.",
        ("warning", "info"),
        stuck_sagas,
    ),
)
