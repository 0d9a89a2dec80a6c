"""A saga's data: a pydantic model to users, plain JSON values in the tables and in `progress`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, RootModel, Secret, SecretBytes, SecretStr, ValidationError

from outbox_saga.errors import MessageRefused
from outbox_saga.payloads import dump_json
from outbox_saga.saga import places

D = TypeVar("D", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class DataUpcast:
    """How data of an older version becomes data of this one.

    Args:
        model: Of the older version.
        by: Gets the data as stored.
    """

    model: type[BaseModel]
    by: Callable[[dict[str, Any]], Mapping[str, Any]]


class SagaData(Generic[D]):
    """Takes the data of one saga's instances in and out of its stored form.

    Args:
        model: Of the data.
        saga: The saga's name, for errors.
    """

    def __init__(self, model: type[D], saga: str) -> None:
        self.model = model
        self._saga = saga

    def dump(self, data: D | Mapping[str, Any]) -> dict[str, Any]:
        """The data as plain JSON values, which are the same for the same data in every process.

        Raises MessageRefused with the path of what does not fit; no values.
        """
        try:
            model = data if isinstance(data, self.model) else self.model.model_validate(data)
            plain = model.model_dump(mode="json")
        except ValidationError as error:
            path, reason = places.misfit(self.model, data, error)
            raise MessageRefused(path, f"{reason} (saga {self._saga})") from None
        except Exception as error:  # noqa: BLE001  # users' validators and serializers
            raise MessageRefused(
                "$", f"{type(error).__name__} (saga {self._saga}); its data must be JSON"
            ) from None
        given = model.model_dump(mode="python") if _plain(model) else plain
        try:
            dump_json(given)
        except MessageRefused as refused:
            raise places.unstorable(self.model, given, refused) from None
        kept: dict[str, Any] = _kept(model, plain, "$")
        return kept

    def upcast(self, upcast: DataUpcast, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Data of the older version as this one has it.

        Raises MessageRefused with the path of what does not fit; no values.
        """
        try:
            new = upcast.by(json.loads(json.dumps(plain)))
        except Exception as error:  # noqa: BLE001  # users' code, and what it says may show values
            raise MessageRefused("$", f"the upcaster raised {type(error).__name__}") from None
        return self.dump(new)

    def renamed(
        self, upcast: DataUpcast, plain: Mapping[str, Any], new: Mapping[str, Any], field: str
    ) -> frozenset[str]:
        """The fields of this version that have what this field of the older one has.

        Only what is certain: those to which the upcaster hands it on as it is. Where none is
        found, the field of the same name, if there is one.

        Args:
            plain: The data of the older version.
            new: Upcast.
        """
        mark: Any = object()
        try:
            moved = upcast.by({**json.loads(json.dumps(plain)), field: mark})
            names = [name for name, value in dict(moved).items() if value is mark]
        except Exception:  # noqa: BLE001  # users' code does more with it than hand it on
            names = []
        found = frozenset(n for n in names if n in new and new[n] == plain.get(field))
        return found or frozenset({field}).intersection(self.model.model_fields)

    def load(self, plain: Mapping[str, Any]) -> D:
        """The model of stored data."""
        return self.model.model_validate(plain)

    def reload(self, plain: Mapping[str, Any]) -> D:
        """The model of what is stored; raises MessageRefused when it cannot be read back."""
        try:
            return self.load(plain)
        except Exception as error:  # noqa: BLE001  # users' validators
            raise MessageRefused(
                "$",
                f"{self.model.__name__} does not read back what it writes "
                f"({type(error).__name__}): give aliased fields validate_by_name, and types that "
                "JSON keeps",
            ) from None

    def merge(
        self, plain: Mapping[str, Any], added: object, writes: Collection[str] | None = None
    ) -> dict[str, Any]:
        """The data with what a step returned.

        Args:
            writes: The fields that the step may return; None: any.

        Raises MessageRefused when it does not fit the model.
        """
        fields = self.fields_of(added)
        if fields is None:
            return dict(plain)
        for name in fields:
            if name not in self.model.model_fields:
                raise MessageRefused(
                    places.field(name),
                    f"{self.model.__name__} has no such field; add it to the model of saga "
                    f"{self._saga}",
                )
            if writes is not None and name not in writes:
                raise MessageRefused(
                    f"$.{name}",
                    "the step returned it, and its writes= does not name it; add it there, so "
                    "that no parallel step writes it too",
                )
        return self.dump({**plain, **fields})

    def fields_of(self, added: object) -> Mapping[str, Any] | None:
        """What a step returned, by field; None for nothing.

        Raises MessageRefused when it has no fields.
        """
        if added is None:
            return None
        if isinstance(added, BaseModel):
            added = added.model_dump()
        if not isinstance(added, Mapping):
            raise MessageRefused(
                "$", f"a step returned {type(added).__name__}; return a mapping of fields, or None"
            )
        return added


def _kept(value: object, plain: Any, path: str) -> Any:
    """The JSON of a value as it is kept: what was a set is in the order of its JSON texts, for
    its own order is another one in each process.

    Where a serializer has made something else of the value, that is kept as it is. Raises
    MessageRefused for a secret that would be kept as asterisks.
    """
    if isinstance(value, SecretStr | SecretBytes | Secret):
        if _is_hidden(value, plain):
            raise MessageRefused(
                path,
                "a secret is stored as asterisks, and no step would get it; give its field a "
                "serializer that reveals it (@field_serializer), or keep a reference to it",
            )
    elif isinstance(value, RootModel):
        return _kept(value.root, plain, path)
    elif isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        if isinstance(plain, dict):
            inner = [(n, p, v) for n, p, v in _members(value) if n in plain]
            return plain | {n: _kept(v, plain[n], f"{path}.{p}") for n, p, v in inner}
    elif isinstance(value, Mapping):
        if isinstance(plain, dict) and len(plain) == len(value):
            both = zip(plain.items(), value.values(), strict=True)
            return {key: _kept(item, p, f"{path}[*]") for (key, p), item in both}
    elif isinstance(value, list | tuple | deque) and _alike(value, plain):
        each = enumerate(zip(value, plain, strict=True))
        return [_kept(item, p, f"{path}[{index}]") for index, (item, p) in each]
    elif isinstance(value, set | frozenset) and _alike(value, plain):
        items = [_kept(item, p, f"{path}[*]") for item, p in zip(value, plain, strict=True)]
        return sorted(items, key=_text)
    return plain


def _alike(value: Collection[object], plain: object) -> bool:
    return isinstance(plain, list) and len(plain) == len(value)


def _is_hidden(secret: Any, plain: object) -> bool:
    asterisks = isinstance(plain, str) and plain != "" and set(plain) == {"*"}
    return asterisks and secret.get_secret_value() not in (plain, str(plain).encode())


def _members(value: Any) -> Iterator[tuple[str, str, object]]:
    """Of each field the name as it is written, its own name, and its value."""
    if not isinstance(value, BaseModel):
        for each in fields(value):
            yield each.name, each.name, getattr(value, each.name, None)
        return
    for name, info in type(value).model_fields.items():
        here = getattr(value, name, None)
        yield name, name, here
        for alias in {info.alias, info.serialization_alias} - {None, name}:
            yield str(alias), name, here
    for name, here in (value.model_extra or {}).items():
        yield name, "[*]", here


def _text(plain: object) -> str:
    return json.dumps(plain, sort_keys=True)


def _plain(model: BaseModel) -> bool:
    """Whether the Python values are JSON values already, so that NaN and bad keys are seen before
    pydantic renames them.
    """
    try:
        json.dumps(model.model_dump(mode="python"))
    except (TypeError, ValueError):
        return False
    return True
