"""Where in a saga's data something does not fit, and why, told without a value of it.

What is told ends in logs, in the history and in the saga's reason, and the data may be personal.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from outbox_saga.errors import MessageRefused
from outbox_saga.payloads import check_json

_HIDDEN = "[*]"  # a key of a dict: it is a value, too

# What pydantic says of these has nothing from the input in it, only what the model asks for.
# Other texts are those of users' validators, or show what was found.
_SHOWS_NO_VALUE: frozenset[str] = frozenset(
    {
        *("missing", "extra_forbidden", "frozen_field", "none_required", "model_type"),
        *("model_attributes_type", "dataclass_type", "dataclass_exact_type", "named_tuple_type"),
        *("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"),
        *("finite_number", "too_short", "too_long", "iterable_type", "string_type"),
        *("string_unicode", "string_too_short", "string_too_long", "string_pattern_mismatch"),
        *("enum", "literal_error", "dict_type", "mapping_type", "list_type", "tuple_type"),
        *("set_type", "frozen_set_type", "set_item_not_hashable", "bool_type", "bool_parsing"),
        *("int_type", "int_parsing", "int_parsing_size", "int_from_float", "float_type"),
        *("float_parsing", "bytes_type", "bytes_too_short", "bytes_too_long", "date_type"),
        *("date_past", "date_future", "time_type", "datetime_type", "datetime_past"),
        *("datetime_future", "timezone_naive", "timezone_aware", "time_delta_type", "uuid_type"),
        *("uuid_version", "url_type", "url_too_long", "url_scheme", "decimal_type"),
        *("decimal_parsing", "decimal_max_digits", "decimal_max_places", "decimal_whole_digits"),
        *("is_instance_of", "is_subclass_of", "callable_type", "union_tag_not_found"),
    }
)


def misfit(model: type[BaseModel], given: object, error: ValidationError) -> tuple[str, str]:
    """The path of the first thing that does not fit, and the reason.

    Args:
        given: What was validated.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    path, here = "$", given
    for part in first["loc"]:
        path += _told(model, here, part)
        here = _inside(here, part)
    return path, _reason(first)


def unstorable(model: type[BaseModel], value: object, refused: MessageRefused) -> MessageRefused:
    """A refusal of JSON, with a path that shows no value."""
    path, here = "$", value
    while (part := next(_refused_in(here), None)) is not None:
        path += _told(model, here, part)
        here = _inside(here, part)
    return MessageRefused(path, refused.reason)


def field(name: object) -> str:
    """The path of a field that there may not be: of a name that was misspelt, or of a value."""
    return f"$.{name}" if isinstance(name, str) and name.isidentifier() else f"${_HIDDEN}"


def _reason(first: ErrorDetails) -> str:
    kind: Any = first["type"]
    if kind in _SHOWS_NO_VALUE:
        try:
            # made again, for a validator may say something else under the same type
            return PydanticKnownError(kind, first.get("ctx")).message()
        except TypeError:
            pass  # it did, and does not even have what belongs to this type
    return f"it does not fit ({kind}); what is said of it may show it, so look at the model"


def _told(model: type[BaseModel], here: object, part: object) -> str:
    if isinstance(part, int):
        return f"[{part}]" if isinstance(here, list | tuple) else _HIDDEN
    return f".{part}" if part in _names(model) else _HIDDEN


def _inside(here: object, part: Any) -> object:
    if isinstance(here, Mapping):
        return here.get(part, here)  # it names no key where it tells which one of a union is meant
    if isinstance(here, list | tuple) and isinstance(part, int):
        return here[part] if part < len(here) else None
    return getattr(here, str(part), here) if isinstance(here, BaseModel) else here


def _refused_in(value: object) -> Iterator[Any]:
    """Under which keys or indexes something is refused."""
    members = value.items() if isinstance(value, Mapping) else enumerate(_items(value))
    for part, item in members:
        try:
            if isinstance(part, str):
                check_json(part)
            check_json(item)
        except MessageRefused:
            yield part


def _items(value: object) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else ()


@functools.cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """All names of fields in the model and in what it is made of, as they are written anywhere."""
    found: set[str] = set()
    for by_alias in (True, False):
        queue: list[Any] = [model.model_json_schema(by_alias=by_alias)]
        while queue:
            each = queue.pop()
            if isinstance(each, dict):
                found.update(each.get("properties", ()))
                queue += each.values()
            elif isinstance(each, list):
                queue += each
    return frozenset(found)
