"""A saga's data: a pydantic model to users, plain JSON values in the tables and in `progress`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from outbox_saga.errors import MessageRefused
from outbox_saga.payloads import dump_json

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
        """The data as plain JSON values.

        Raises MessageRefused with the path of what does not fit.
        """
        try:
            model = data if isinstance(data, self.model) else self.model.model_validate(data)
            plain = model.model_dump(mode="json")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f".{part}" for part in first["loc"])
            raise MessageRefused(f"${where}", f"{first['msg']} (saga {self._saga})") from None
        except Exception as error:  # noqa: BLE001  # users' validators and serializers
            raise MessageRefused(
                "$", f"{type(error).__name__} (saga {self._saga}); its data must be JSON"
            ) from None
        dump_json(model.model_dump(mode="python") if _plain(model) else plain)
        return plain

    def upcast(self, upcast: DataUpcast, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Data of the older version as this one has it.

        Raises MessageRefused with the path of what does not fit; no values.
        """
        try:
            new = upcast.by(json.loads(json.dumps(plain)))
        except Exception as error:
            raise MessageRefused("$", f"the upcaster raised {type(error).__name__}") from error
        return self.dump(new)

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
                    f"$.{name}",
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


def _plain(model: BaseModel) -> bool:
    """Whether the Python values are JSON values already, so that NaN and bad keys are seen before
    pydantic renames them.
    """
    try:
        json.dumps(model.model_dump(mode="python"))
    except (TypeError, ValueError):
        return False
    return True
