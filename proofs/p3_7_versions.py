"""Proof 3.7: definitions that change while instances of them are on their way.

An instance waits at each step in turn; then a release comes in which a step was removed, renamed
or moved. Three ways to release it: beside the old version, in its place, and as the old version.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from outbox_saga import Retry, Saga, Service, nothing_to_undo
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.saga.parking import OVERDUE
from outbox_saga.saga.snapshot import compare, take_snapshot
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from outbox_saga_migrations import upgrade
from proofs.registry import Outcome, proof, say

STEPS = ("weigh", "label", "send")
CHANGES: dict[str, tuple[str, ...]] = {
    "removed": ("weigh", "send"),
    "renamed": ("weigh", "stamp", "send"),
    "reordered": ("label", "weigh", "send"),
}
SERVERS: tuple[type[DatabaseServer], ...] = (Postgres18, MariaDB)
UNTIL_OPEN = Retry(max_attempts=100_000, initial=0.01, max_delay=0.01)


class Parcel(BaseModel):
    """The data of the saga."""

    number: int


class Release:
    """What is deployed at one moment, by the same service on the same database."""

    def __init__(self, url: str, sagas: Sequence[Saga[Any]], *, later: float = 0.0) -> None:
        self.service = Service("post", database=url, sagas=sagas, clock=Clock(later), poll=0.02)

    async def carry_on(self) -> None:
        """As far as it goes now."""
        orchestrator = self.service.orchestrator()
        try:
            await orchestrator.run_once()
        finally:
            orchestrator.close()

    async def close(self) -> None:
        """Its connections are given back."""
        await self.service.close()


def definition(
    steps: Sequence[str], *, version: int = 1, closed: Callable[[str], bool] = lambda _: False
) -> Saga[Parcel]:
    """These steps one after another; those that are closed fail, and are tried again and again."""
    saga = Saga("parcels", data=Parcel, version=version)
    for name in steps:

        async def act(step: Any) -> None:
            if closed(step.step):
                raise OSError

        saga.step(name, act, compensation=nothing_to_undo, retry=UNTIL_OPEN)
    return saga


@proof("3.7")
def versions() -> Outcome:
    """Every step, change and way to release it, on three databases."""
    wrong: list[str] = []
    cases: dict[str, int] = {}
    for name, url in _databases():
        for at in STEPS:
            for change, steps in CHANGES.items():
                for case in (_beside, _instead, _as_the_old_one):
                    told = asyncio.run(case(url, at, steps))
                    cases[name] = cases.get(name, 0) + 1
                    if told:
                        what = f"{name}, waiting at {at}, {change}, {case.__name__[1:]}: {told}"
                        wrong.append(what)
        say(f"{name}: {cases[name]} cases")
    expected = len(STEPS) * len(CHANGES) * 3
    complete = len(cases) == 3 and all(count == expected for count in cases.values())
    return Outcome(complete and not wrong, {"cases": cases, "violations": wrong})


async def _beside(url: str, at: str, steps: tuple[str, ...]) -> str:
    """The new version beside the old one: instances finish on the version they were started with,
    and `saga check` has nothing against it.
    """
    id_, service = await _waiting(url, at)
    new = [definition(STEPS), definition(steps, version=2)]
    kept = take_snapshot([definition(STEPS)])
    refused = [f for f in compare(kept, take_snapshot(new), await _alive(service)) if f.refuses]
    told = "" if not refused else f"check refused it: {refused}"
    return told or await _ends_on_v1(url, service, id_, new)


async def _instead(url: str, at: str, steps: tuple[str, ...]) -> str:
    """The new version in place of the old one."""
    reason = "no version 1 of parcels is registered here (only 2)"
    return await _parked(url, at, [definition(steps, version=2)], "missing", reason)


async def _as_the_old_one(url: str, at: str, steps: tuple[str, ...]) -> str:
    """The old version was changed where it stands."""
    reason = "version 1 of parcels has another shape here"
    return await _parked(url, at, [definition(steps)], "changed", reason)


async def _parked(url: str, at: str, new: list[Saga[Any]], kind: str, reason: str) -> str:
    """`saga check` refuses it, the instance is parked with the reason, and goes on when its
    version is back.
    """
    id_, service = await _waiting(url, at)
    kept, here = take_snapshot([definition(STEPS)]), take_snapshot(new)
    by_snapshot = {f.kind for f in compare(kept, here) if f.refuses}
    by_database = {f.kind for f in compare(here, here, await _alive(service)) if f.refuses}
    before = await _seen(service, id_)
    release = Release(url, new, later=OVERDUE + 1)
    await release.carry_on()
    await release.close()
    after = await _seen(service, id_)
    told = ""
    if by_snapshot != {kind} or by_database != {kind}:
        told = f"check said {by_snapshot} by the snapshot and {by_database} by the database"
    elif not str(after.parked).startswith(reason) or after.steps != before.steps:
        told = f"parked: {after.parked!r}"
    return told or await _ends_on_v1(url, service, id_, [definition(STEPS)])


async def _ends_on_v1(url: str, service: Service, id_: UUID, sagas: Sequence[Saga[Any]]) -> str:
    release = Release(url, sagas, later=OVERDUE + 2)
    await release.carry_on()
    await release.close()
    state = await _seen(service, id_)
    _, history = await SagaOperations(service.database).show(id_)
    done = [h.entry.step for h in history if h.entry.transition == "STEP_COMPLETED"]
    await service.close()
    if state.status != "completed" or done != list(STEPS) or state.parked is not None:
        return f"ended {state.status} with {done}, parked: {state.parked}"
    return ""


async def _waiting(url: str, at: str) -> tuple[UUID, Service]:
    """An instance of the first version that has come to this step, and waits there."""
    saga = definition(STEPS, closed=lambda name: name == at)
    release = Release(url, [saga])
    with release.service.database.begin() as connection:
        upgrade(connection)
    async with release.service.unit_of_work() as uow:
        id_ = saga.start(uow, {"number": 7})
    await release.carry_on()
    state = await _seen(release.service, id_)
    phases = {name: step.phase for name, step in state.steps.items()}
    behind = STEPS[STEPS.index(at) :]
    expected = {name: "waiting" if name in behind else "done" for name in STEPS}
    if phases != expected:
        raise AssertionError(f"it does not wait at {at}: {phases}")
    return id_, release.service


async def _seen(service: Service, id_: UUID) -> Any:
    instance, _ = await SagaOperations(service.database).show(id_)
    return instance.state


async def _alive(service: Service) -> Any:
    return await SagaOperations(service.database).alive(service.name)


def _databases() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
        yield "SQLite", f"sqlite:///{Path(folder, 'post.db')}"
    for server in SERVERS:
        with choose(server) as running:
            yield server.name, running.create_database()
