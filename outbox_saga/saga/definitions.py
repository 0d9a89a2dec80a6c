"""The definitions that a process has, and which of them carries an instance on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from outbox_saga.errors import ConfigurationError
from outbox_saga.instances import Instance
from outbox_saga.saga.definition import Saga


class Definitions:
    """An instance is carried on by the very shape that it was started with, by the latest version
    that takes that shape over (`Saga.upcasts`), or by none.

    Args:
        definitions: Each is checked, and frozen by that.

    Raises:
        ConfigurationError: Two of one name and version.
    """

    def __init__(self, definitions: Iterable[Saga[Any]]) -> None:
        self._all: dict[tuple[str, int], Saga[Any]] = {}
        for definition in definitions:
            key = (definition.check().name, definition.version)
            if self._all.setdefault(key, definition) is not definition:
                raise ConfigurationError(
                    f"saga {key[0]} version {key[1]} is registered twice; give the newer one "
                    f"version={key[1] + 1}"
                )
        self._by_shape = {definition.shape: definition for definition in self._all.values()}
        for definition in sorted(self._all.values(), key=lambda d: -d.version):
            for shape in definition.taken_over.values():
                # the old definition itself, if it is here, then the newest
                self._by_shape.setdefault(shape, definition)

    def __iter__(self) -> Iterator[Saga[Any]]:
        return iter(self._all.values())

    @property
    def names(self) -> Sequence[str]:
        """Of the sagas."""
        return sorted({name for name, _ in self._all})

    @property
    def shapes(self) -> Sequence[str]:
        """Of all instances that can be carried on here."""
        return sorted(self._by_shape)

    def versions(self, name: str) -> Mapping[int, Saga[Any]]:
        """Those of this saga."""
        return {version: d for (saga, version), d in self._all.items() if saga == name}

    def of(self, instance: Instance) -> Saga[Any] | None:
        """Who carries it on; None: nobody here."""
        found = self._by_shape.get(instance.shape)
        return found if found is not None and found.name == instance.name else None
