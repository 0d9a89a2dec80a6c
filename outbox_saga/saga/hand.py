"""An instance in this process's hands, between its claim and its release."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from outbox_saga.instances import Instance
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import Flight, Surroundings


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
