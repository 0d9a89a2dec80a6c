"""Sagas made by chance: steps of every kind, in any order of dependency."""

from __future__ import annotations

import random
from typing import Any

from pydantic import BaseModel

from outbox_saga import Command, Event, Retry, Saga, external, local, nothing_to_undo
from outbox_saga.errors import DefinitionError

NAMES = "abcdef"
KINDS = ("local", "key", "question", "key and question", "command", "event", "timer")


class Data(BaseModel):
    """A field for each step, which that one writes."""

    n: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0
    f: int = 0


class Do(Command, topic="lives"):
    n: int
    a: int = 0
    b: int = 0
    c: int = 0


class Undo(Command, topic="lives"):
    n: int
    d: int = 0
    e: int = 0
    f: int = 0


class Came(Event, topic="lives"):
    n: int = 0


class WillNotCome(Event, topic="lives"):
    n: int = 0


async def act(_: Any) -> None:
    """Nobody calls it; only the decisions are looked at."""


def made_by(chance: random.Random) -> Saga[Data]:
    """A definition that keeps the rules."""
    while True:
        try:
            return _any(chance).check()
        except DefinitionError:
            continue


def _any(chance: random.Random) -> Saga[Data]:
    saga = Saga(
        "life",
        data=Data,
        deadline=chance.choice([None, None, 500.0]),
        max_parallel=chance.choice([1, 2, 8]),
    )
    names = NAMES[: chance.randint(2, len(NAMES))]
    pivot = chance.choice([None, *names])
    for index, name in enumerate(names):
        before = names[:index]
        after = tuple(sorted(chance.sample(before, chance.randint(0, min(index, 2)))))
        _add(saga, name, after, chance, pivot=name == pivot)
    return saga


def _add(
    saga: Saga[Data], name: str, after: tuple[str, ...], chance: random.Random, *, pivot: bool
) -> None:
    kind = chance.choice([each for each in KINDS if not (pivot and each == "timer")])
    chosen = chance.random() < 0.5
    options: dict[str, Any] = {"after": after, "pivot": pivot}
    if not pivot and chance.random() < 0.25:
        options["when"] = lambda _: chosen
    if kind == "timer":
        saga.timer(name, 50.0, after=after, when=options.get("when"))
        return
    undone_by = chance.choice([local(act), external(act), Undo, nothing_to_undo, local(act)])
    if not (pivot and chance.random() < 0.5):
        options["compensation"] = undone_by
        if undone_by is not nothing_to_undo:
            attempts = chance.choice([1, 2, 3])
            options["compensation_retry"] = Retry(max_attempts=attempts, initial=1.0)
    elif kind == "event":
        options["compensation"] = nothing_to_undo
    if kind == "event":
        timeout = chance.choice([100, 1000])
        saga.wait_for(name, Came, fails_on=WillNotCome, timeout=timeout, **options)
        return
    options["retry"] = Retry(max_attempts=chance.choice([2, 2, 3]), initial=1.0)
    if kind == "command":
        saga.step(name, Do, timeout=60, **options)
        return
    if kind != "local":
        options["external"] = True
        options["idempotent"] = "key" in kind
        options["query"] = act if "question" in kind else None
    saga.step(name, act, **options)
