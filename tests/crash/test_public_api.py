"""Whatever of messages is public, the crash explorer goes through it, or says why not."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import pytest

import outbox_saga
import outbox_saga_migrations
from tests.crash.explorer import Explorer
from tests.crash.operations import MESSAGES
from tests.crash.public_api import CLASSES, COVERED, NOT_EXPLORED, public_names
from tests.crash.world import World


def test_every_public_name_has_an_operation_or_a_reason() -> None:
    missing = public_names() - set(COVERED) - set(NOT_EXPLORED)
    assert not missing, f"add them to public_api.py: {sorted(missing)}"


def test_no_name_is_listed_that_is_not_public_and_none_twice() -> None:
    assert not (set(COVERED) | set(NOT_EXPLORED)) - public_names()
    assert not set(COVERED) & set(NOT_EXPLORED)


def test_every_operation_is_there_for_something_public() -> None:
    named = {operation for operations in COVERED.values() for operation in operations}
    assert not named - set(MESSAGES)
    # these come by ways that brokers take: what they answer is not public
    inner = {name for name in MESSAGES if name.startswith(("relay", "consume"))}
    assert not set(MESSAGES) - named - inner


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize("operation", sorted({o for os in COVERED.values() for o in os}))
def test_an_operation_comes_through_what_it_is_said_to_cover(operation: str, world: World) -> None:
    wanted = {n: _code(n) for n, operations in COVERED.items() if operation in operations}
    with _watched() as seen:
        Explorer(world, MESSAGES[operation]).count()
    missed = [name for name, codes in wanted.items() if not codes & seen]
    assert not missed


def _code(name: str) -> set[CodeType]:
    """The code of this function, class's method or command."""
    if name.startswith("command "):
        from tests.crash.commands import command_of

        return {inspect.unwrap(command_of(name.split(" ")[1:])).__code__}
    owner, _, attribute = name.rpartition(".")
    if owner == "migrations":
        found: Any = getattr(outbox_saga_migrations, attribute)
    elif owner:
        kind = next(each for each in CLASSES if each.__name__ == owner)
        found = inspect.getattr_static(kind, attribute)
    else:
        found = getattr(outbox_saga, attribute)
    found = found.fget if isinstance(found, property) else found
    return {inspect.unwrap(found).__code__}


@contextmanager
def _watched() -> Iterator[set[CodeType]]:
    """What runs meanwhile, in any thread."""
    seen: set[CodeType] = set()

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
