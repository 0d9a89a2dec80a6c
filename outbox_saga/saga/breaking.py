"""Breakers at a transition: what its outcome does to them, and which calls they let through.

In the transition's own transaction: a probe that is taken is given back if the intent of its call
does not commit, and a failure counts once for each attempt that is recorded.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from outbox_saga.breaker import SPREAD, Breaker, Gates, gates_of
from outbox_saga.instances import Direction, Entry
from outbox_saga.queries import breakers
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import (
    EVERY_GATE_IS_OPEN,
    Call,
    Decision,
    Errored,
    Happened,
    Resumed,
    Run,
    ToDo,
)
from outbox_saga.tables import Tables


def guarded(definition: Saga[Any], todo: tuple[ToDo, ...]) -> dict[str, float]:
    """The breakers that these calls and questions have to pass, with the longest of their
    timeouts in seconds.
    """
    found: dict[str, float] = {}
    for each in todo:
        step = definition.steps[each.step]
        if step.breaker is not None and not isinstance(each, Run):
            name = _name(step.breaker)
            direction = each.direction if isinstance(each, Call) else "do"
            found[name] = max(found.get(name, 0.0), step.time_for(direction))
    return found


def note_outcome(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    definition: Saga[Any],
    happened: Happened,
) -> Entry | None:
    """The breaker of the step knows what came of its call; what the history says if it opened.

    A business no is an answer, and so is that a query found nothing.
    """
    if isinstance(happened, Resumed):
        return None
    step = definition.steps[happened.step]
    breaker = step.breaker
    direction: Direction = getattr(happened, "direction", "do")
    if breaker is None or not step.calls(direction):
        return None
    name = _name(breaker)
    began = getattr(happened, "started_at", None)
    if not isinstance(happened, Errored):
        # mostly it is closed, and then nobody waits for its row
        known = breakers.read(connection, tables, clock, [name])
        if not any(stand.failures or stand.until for stand in known):
            return None
        stand = breakers.lock(connection, tables, clock, name)
        if (answered := stand.answered(began)) != stand:
            breakers.note(connection, tables, clock, answered)
        return None
    if not happened.asked:
        return None  # of this process or this saga: it says nothing of the other side
    stand = breakers.lock(connection, tables, clock, name)
    failed = stand.failed(breaker, began)
    if failed != stand:
        breakers.note(connection, tables, clock, failed)
    if failed.trips == stand.trips:
        return None
    told = f"breaker {name}: {failed.failures} failures in a row, open for {breaker.seconds:g} s"
    return Entry("BREAKER_OPENED", happened.step, happened.attempt, told)


def gates_now(
    connection: sa.Connection, tables: Tables, clock: Clock, definition: Saga[Any]
) -> Gates:
    """What the breakers of its steps let through; no probe is taken."""
    rules = definition.breakers
    return gates_of(breakers.read(connection, tables, clock, rules), rules) if rules else Gates()


def let_through(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    definition: Saga[Any],
    decide: Callable[[Gates], Decision],
    lease: float,
) -> tuple[Decision, frozenset[str]]:
    """The decision, with only such calls as breakers let through; the probes among them.

    Whoever does not go on with it gives the probes back, or ends the transaction: as long as
    they are on their way, nobody else's call goes.

    Args:
        decide: With these gates. It asks nobody.
        lease: Seconds by which a probe may be later than its timeout, before it counts as lost.
    """
    decision = decide(EVERY_GATE_IS_OPEN)
    if not guarded(definition, decision.todo):
        return decision, frozenset()
    rules = definition.breakers
    gates = gates_now(connection, tables, clock, definition)
    taken: set[str] = set()
    while gates.shut or gates.ajar:
        decision = decide(gates)
        asked = guarded(definition, decision.todo)
        lost = {
            name
            for name in sorted(gates.ajar.intersection(asked) - taken)
            if not breakers.take_probe(connection, tables, clock, name, asked[name] + lease)
        }
        taken |= gates.ajar.intersection(asked) - lost
        if not lost:
            break
        now = clock.read(connection)
        soon = {n: now + dt.timedelta(seconds=rules[n].seconds * SPREAD) for n in lost}
        gates = replace(gates, shut={**gates.shut, **soon}, ajar=gates.ajar - lost)
    return decision, frozenset(taken)


def _name(breaker: Breaker) -> str:
    assert breaker.name is not None, "a definition names every one"
    return breaker.name
