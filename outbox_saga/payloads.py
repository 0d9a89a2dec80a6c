"""JSON that every database, broker and language reads back as it was written, or a refusal with
its path.

Why each refusal: NUL is refused by PostgreSQL text, NaN and infinities are not JSON, lone
surrogates are not UTF-8, duplicate keys are folded by readers, keys that are not strings are
renamed, and deep nesting crashes readers.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outbox_saga.errors import MessageRefused

MAX_DEPTH = 64
MAX_INT_DIGITS = 4300  # CPython refuses to parse longer ones; so would a consumer
_MAX_INT = 10**MAX_INT_DIGITS
_LEAVES = frozenset({dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID})


def check_json(value: object, *, path: str = "$", max_depth: int = MAX_DEPTH) -> None:
    """Nothing is refused later.

    Raises MessageRefused with the path of the first value that cannot travel.

    Args:
        value: What `json.dumps` or pydantic would get: mappings, sequences, strings, numbers,
            booleans, None. Leaves of other types (datetime, Decimal, UUID) pass; the serializer
            decides on them.
        path: The path of `value` itself.
        max_depth: Levels of nesting allowed.
    """
    if not is_fine(value, max_depth):
        _check(value, path, max_depth, set())


def is_fine(value: object, max_depth: int = MAX_DEPTH) -> bool:
    """True when `check_json` would let it pass. False says nothing."""
    try:
        return _is_fine(value, max_depth)
    except UnicodeEncodeError:
        return False


def _is_fine(value: Any, depth: int) -> bool:
    """True when `_check` would let it pass. Nearly every message does, and this names no paths.

    False, or UnicodeEncodeError, says nothing.
    """
    kind = type(value)
    if kind is dict:
        return depth > 0 and _are_fine_members(value, depth - 1)
    if kind is list or kind is tuple:
        return depth > 0 and all(_is_fine(item, depth - 1) for item in value)
    if kind is str:
        return _is_fine_text(value)
    if kind is int:
        return bool(-_MAX_INT < value < _MAX_INT)
    if kind is float:
        return math.isfinite(value)
    return value is None or kind is bool or kind in _LEAVES


def _are_fine_members(members: dict[Any, Any], depth: int) -> bool:
    for key, item in members.items():
        if type(key) is not str or not key.isascii() or "\x00" in key:
            return False
        # most are ASCII texts, and a call costs more than the look
        if type(item) is str and item.isascii():
            if "\x00" in item:
                return False
        elif not _is_fine(item, depth):
            return False
    return True


def _is_fine_text(text: str) -> bool:
    if not text.isascii():
        text.encode("utf-8")
    return "\x00" not in text


def _check(value: object, path: str, depth: int, parents: set[int]) -> None:
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise MessageRefused(path, f"{value} is not JSON; send null or a string instead")
    elif isinstance(value, Mapping):
        _descend(value, path, depth, parents)
        for key, item in value.items():
            if not isinstance(key, str):
                raise MessageRefused(
                    path,
                    f"a key of type {type(key).__name__} is not a string and would be renamed; "
                    "use string keys",
                )
            _check_text(key, f"{path}.{key!r}"[:200])
            _check(item, f"{path}.{key}", depth - 1, parents)
        parents.discard(id(value))
    elif isinstance(value, list | tuple | set | frozenset):
        _descend(value, path, depth, parents)
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth - 1, parents)
        parents.discard(id(value))
    elif isinstance(value, int):
        if not -_MAX_INT < value < _MAX_INT:
            raise MessageRefused(
                path, f"an integer of more than {MAX_INT_DIGITS} digits; send a string instead"
            )
    elif isinstance(value, _Unreadable):
        raise MessageRefused(path, value.reason)


def _descend(value: object, path: str, depth: int, parents: set[int]) -> None:
    if id(value) in parents:
        raise MessageRefused(path, "the value contains itself; send a tree")
    if depth <= 0:
        raise MessageRefused(
            path[:200], f"nested deeper than {MAX_DEPTH} levels; flatten it or refer to it by id"
        )
    parents.add(id(value))


def _check_text(text: str, path: str) -> None:
    if text.isascii():
        if "\x00" in text:
            raise MessageRefused(
                path, "contains NUL (\\u0000), which PostgreSQL refuses; strip it"
            )
        return
    if "\x00" in text:
        raise MessageRefused(path, "contains NUL (\\u0000), which PostgreSQL refuses; strip it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MessageRefused(
            path, f"contains a lone surrogate at character {error.start}, which is not UTF-8"
        ) from None


def storable(text: str, limit: int) -> str:
    """The text as every database takes it: at most `limit` characters, no NUL, no lone surrogate.

    For texts of exceptions, where a refusal would lose more than a letter.
    """
    clean = text[:limit].replace("\x00", "\ufffd")
    return clean.encode("utf-8", "replace").decode("utf-8")


def dump_json(value: object, *, path: str = "$") -> bytes:
    """The value as compact UTF-8 JSON.

    Raises MessageRefused where it could not be read back unchanged.
    """
    check_json(value, path=path)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise MessageRefused(
            path, f"not JSON ({error}); use a pydantic model for richer types"
        ) from error


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands in the place of what readers disagree about, until its path is known."""

    reason: str


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Unreadable:
    result = dict(pairs)
    if len(result) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        return _Unreadable(f"key {twice[:80]!r} stands twice in one object; readers disagree")
    return result


def _constant(name: str) -> _Unreadable:
    return _Unreadable(f"{name} is not JSON; send null or a string instead")


def load_json(body: bytes | str, *, path: str = "$") -> Any:
    """The value of strict JSON.

    Raises MessageRefused for what readers disagree about (duplicate keys, NaN, depth).
    """
    try:
        # decoded here: json.loads would guess UTF-16 and UTF-32, which other readers do not
        text = body if isinstance(body, str) else body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_constant)
    except RecursionError:
        raise MessageRefused(path, f"nested deeper than {MAX_DEPTH} levels; flatten it") from None
    except ValueError as error:  # malformed, not UTF-8, or an integer of more than 4,300 digits
        raise MessageRefused(path, f"not readable as JSON: {error}") from error
    check_json(value, path=path)
    return value
