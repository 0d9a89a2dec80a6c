"""An instance in this process's hands, between its claim and its release."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from outbox_saga.instances import Instance, SagaState
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import (
    Call,
    Flight,
    Query,
    Run,
    Surroundings,
    ToDo,
    flight_of,
)


@dataclass(slots=True)
class Hand:
    """An instance in this process's hands: as last committed, and what is being carried out."""

    definition: Saga[Any]
    instance: Instance
    owner: UUID
    now: dt.datetime  # the database's time, read at `read_at`
    read_at: float
    lease: float
    lease_ends: float = (
        math.inf
    )  # by this process's monotonic clock: then somebody else may have it
    in_flight: set[Flight] = field(default_factory=set)
    # calls that are decided and have not begun yet, by whose report it was
    beginning: dict[Flight | None, tuple[Call | Query, ...]] = field(default_factory=dict)
    leased: bool = True  # as last committed: this process goes on with it
    lag: float = 0.0  # seconds that reading the database's time took
    stopping: bool = False  # its process begins nothing any more
    waiting: asyncio.Future[None] | None = None  # somebody else may end it: the row has moved

    def advance(self, instance: Instance, *, leased: bool) -> None:
        """Takes over what was committed.

        Of two branches that commit together, the later revision stays.
        """
        if instance.revision > self.instance.revision:
            self.leased = leased
            self.instance = instance

    def will_begin(self, reporting: Flight | None, todos: Iterable[ToDo]) -> None:
        """What is about to be committed by whoever reports this flight; the calls of it begin a
        moment after that.

        Told before, for whoever waits for the row finds their intents in it at once. What the same
        one has told before was rolled back, or has begun.
        """
        # of a local step nothing is on record, and only the newest decision may begin it
        self.beginning[reporting] = tuple(t for t in todos if not isinstance(t, Run))

    def begins(self, todo: ToDo) -> bool:
        """Whether it is to be carried out now, because it is not on its way already."""
        flight = flight_of(todo)
        new = flight not in self.in_flight
        self.in_flight.add(flight)
        for reporting, told in tuple(self.beginning.items()):
            if todo in told:
                self.beginning[reporting] = tuple(each for each in told if each != todo)
        return new

    def deciding(self, state: SagaState, reporting: Flight | None) -> Surroundings:
        """As `surroundings`, for a decision about this state: calls of which it has the intent are
        on their way, though another branch has only just decided them.
        """
        # before what is on its way: `begins` moves them from here to there
        told = [todo for todos in tuple(self.beginning.values()) for todo in todos]
        beginning = {flight_of(todo) for todo in told if _has_intent(state, todo)}
        around = self.surroundings(reporting)
        return replace(around, in_flight=around.in_flight | beginning - {reporting})

    def surroundings(self, reporting: Flight | None) -> Surroundings:
        """What `decide` must know.

        The database's time goes on by this process's monotonic clock.
        """
        now = self.now + dt.timedelta(seconds=time.monotonic() - self.read_at)
        in_flight = (
            frozenset(self.in_flight - {reporting}) if reporting else frozenset(self.in_flight)
        )
        return Surroundings(
            now,
            in_flight,
            self.lease,
            str(self.instance.id),
            self.instance.started_at,
            lag=self.lag,
            stopping=self.stopping,
        )


def _has_intent(state: SagaState, todo: Call | Query) -> bool:
    """Whether the state has this very attempt begun."""
    step = state.steps[todo.step]
    if flight_of(todo) == (todo.step, "undo"):
        return step.phase == "undoing" and step.undo_attempts == todo.attempt
    return step.phase == "calling" and step.attempts == todo.attempt
