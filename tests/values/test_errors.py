"""The tree at the top of errors.py is the tree of the classes."""

from __future__ import annotations

import inspect
import re

from outbox_saga import errors


def drawn() -> dict[str, tuple[str | None, bool]]:
    """Class name: (its parent's name, whether it says it is a ValueError), as drawn."""
    found: dict[str, tuple[str | None, bool]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"([│ ]*(?:[├└]── )?)([A-Z]\w+)( \(ValueError\))?(?: {2,}.*)?", line)
        if match is None or (match[1] == "" and match[2] != "OutboxSagaError"):
            continue
        depth = len(match[1]) // 4
        del path[depth:]
        found[match[2]] = (path[-1] if path else None, match[3] is not None)
        path.append(match[2])
    return found


def test_every_error_is_drawn_where_it_stands_and_nothing_else_is() -> None:
    defined = {
        name: (
            None if cls is errors.OutboxSagaError else cls.__bases__[0].__name__,
            issubclass(cls, ValueError),
        )
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    }
    assert drawn() == defined


def test_every_error_says_in_its_docstring_what_it_means() -> None:
    for _, cls in inspect.getmembers(errors, inspect.isclass):
        assert cls.__doc__, cls
        assert cls.__doc__.strip()


def test_a_refusal_names_the_place_and_the_reason() -> None:
    error = errors.MessageRefused("$.lines[2].price", "NaN is not JSON")
    assert (error.path, error.reason) == ("$.lines[2].price", "NaN is not JSON")
    assert str(error) == "$.lines[2].price: NaN is not JSON"
