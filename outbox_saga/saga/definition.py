"""What users write: a saga's steps, each with its compensation, and the rules they keep.

fulfil_order = (
    Saga("fulfil_order", data=OrderData)
    .step("reserve", reserve_inventory, compensation=release_inventory)
    .step("charge", charge_card, compensation=refund_card, external=True, idempotent=True,
    timeout=20)
)
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar, final
from uuid import UUID

from pydantic import BaseModel, ValidationError

from outbox_saga.errors import DefinitionError, MessageRefused
from outbox_saga.payloads import dump_json
from outbox_saga.retries import Retry
from outbox_saga.unit_of_work import UnitOfWork

D = TypeVar("D", bound=BaseModel)
Action: TypeAlias = Callable[[Any], Any]

DEFAULT_TIMEOUT = 30.0
FORWARD_RETRY = Retry(max_attempts=3)
COMPENSATION_RETRY = Retry(max_attempts=12, initial=0.5, max_delay=60.0)
AFTER_PIVOT_RETRY = Retry(max_attempts=50, initial=0.5, max_delay=300.0)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")


@final
class _NothingToUndo:
    """Says that a step leaves nothing behind: its compensation was not merely forgotten."""

    def __repr__(self) -> str:
        return "nothing_to_undo"


nothing_to_undo: Final = _NothingToUndo()


def minutes(number: float) -> float:
    """So many minutes in seconds."""
    return number * 60.0


def hours(number: float) -> float:
    """So many hours in seconds."""
    return number * 3600.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a saga. See `Saga.step` for the fields."""

    name: str
    action: Action
    compensation: Action | _NothingToUndo | None
    external: bool
    idempotent: bool
    query: Action | None
    timeout: float
    retry: Retry
    compensation_retry: Retry
    after: tuple[str, ...]
    pivot: bool


class Saga(Generic[D]):
    """A process that completes or is undone. Build it once, at import.

    Registering it with a Service freezes it.

    Args:
        name: Stable: running instances refer to it.
        data: The pydantic model of its data; what steps return is merged into it and validated by
            it.
        version: Raise it when steps change, and keep the old definition registered while instances
            of it run.
    """

    def __init__(self, name: str, *, data: type[D], version: int = 1) -> None:
        if not _NAME.fullmatch(name or ""):
            raise DefinitionError(
                f"{name!r} is not a saga name: use letters, digits, '_' and '-', starting with a "
                "letter"
            )
        model: object = data
        if not (inspect.isclass(model) and issubclass(model, BaseModel)):
            raise DefinitionError(
                f"saga {name}: data must be a pydantic model class, not {data!r}"
            )
        if version < 1:
            raise DefinitionError(f"saga {name}: version {version} is not a version; count from 1")
        self.name = name
        self.data = data
        self.version = version
        self._steps: dict[str, Step] = {}
        self._shape: str | None = None

    def step(
        self,
        name: str,
        action: Action,
        *,
        compensation: Action | _NothingToUndo | None = None,
        external: bool = False,
        idempotent: bool = False,
        query: Action | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: Retry | None = None,
        compensation_retry: Retry = COMPENSATION_RETRY,
        after: str | Iterable[str] | None = None,
        pivot: bool = False,
    ) -> Self:
        """Adds a step and returns the saga.

        A local step (the default) runs in one transaction with the saga's own state: its effect
        and the progress commit together or not at all. An external step runs outside any
        transaction: its intent is committed first, the call carries an idempotency key that never
        changes, and an unknown outcome is repeated until it is definite.

        Args:
            action: `async def` (gets an AsyncSession) or plain `def` (runs in a thread, gets a
                Session). Returns Success(data), a dict or None for success, Failure(reason) for a
                business no; an exception is a technical failure and is retried.
            compensation: Undoes it; `nothing_to_undo` says that there is nothing. Called again
                until it succeeds.
            external: Whether it acts outside this database.
            idempotent: The other side acts once per idempotency key, however often it is called.
            query: Asks the other side whether it acted: Success(data) when it did, None when it
                did not.
            timeout: Seconds for one attempt.
            retry: For technical failures.
            compensation_retry: For the compensation.
            after: The steps it waits for; the step before it when left out, `()` for none.
            pivot: Once it is done the saga can only go forward.

        Raises:
            DefinitionError: A rule is broken; the message names the rule and the mend.
        """
        where = f"saga {self.name}, step {name!r}"
        if self._shape is not None:
            raise DefinitionError(f"{where}: the saga is in use already; add all steps before")
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"{where}: use letters, digits, '_' and '-' in a step's name")
        if name in self._steps:
            raise DefinitionError(
                f"{where}: two steps of one name; histories could not tell them apart"
            )
        if not callable(action):
            raise DefinitionError(f"{where}: the action must be a function, not {action!r}")
        if not 0 < timeout < float("inf"):
            raise DefinitionError(
                f"{where}: timeout is {timeout}; give seconds, greater than 0 and finite"
            )
        if external and not idempotent and query is None:
            raise DefinitionError(
                f"{where}: an external step needs idempotent=True (the other side acts once per "
                "key) or "
                "query= (asks whether it acted), or an unknown outcome could never be settled"
            )
        if not external and (idempotent or query is not None):
            raise DefinitionError(
                f"{where}: idempotent= and query= are for external steps; a local step commits "
                "with the saga"
            )
        waits_for: tuple[str, ...]
        if after is None:
            waits_for = (list(self._steps)[-1],) if self._steps else ()
        else:
            waits_for = (after,) if isinstance(after, str) else tuple(after)
        for other in waits_for:
            if other not in self._steps:
                raise DefinitionError(
                    f"{where}: after={other!r} names no earlier step; define that step first "
                    "(which also rules out cycles)"
                )
        self._steps[name] = Step(
            name=name,
            action=action,
            compensation=compensation,
            external=external,
            idempotent=idempotent,
            query=query,
            timeout=timeout,
            retry=retry or FORWARD_RETRY,
            compensation_retry=compensation_retry,
            after=waits_for,
            pivot=pivot,
        )
        if retry is None and self.beyond_pivot(name):
            self._steps[name] = _with_retry(self._steps[name], AFTER_PIVOT_RETRY)
        return self

    @property
    def steps(self) -> Mapping[str, Step]:
        """The steps by name, in the order of definition, which is a topological one."""
        return self._steps

    def before(self, name: str) -> set[str]:
        """All steps that this one waits for, directly or not."""
        found: set[str] = set()
        queue = list(self._steps[name].after)
        while queue:
            other = queue.pop()
            if other not in found:
                found.add(other)
                queue += self._steps[other].after
        return found

    def beyond_pivot(self, name: str) -> bool:
        """True for a step that is not before the pivot (parallel ones too).

        It is never undone, only retried.
        """
        pivots = [s.name for s in self._steps.values() if s.pivot]
        return any(name != p and name not in self.before(p) for p in pivots)

    def check(self) -> Self:
        """The definition keeps every rule and is frozen from now on.

        Raises DefinitionError otherwise.
        """
        if self._shape is not None:
            return self
        if not self._steps:
            raise DefinitionError(f"saga {self.name}: no steps; add at least one")
        pivots = [s.name for s in self._steps.values() if s.pivot]
        if len(pivots) > 1:
            raise DefinitionError(
                f"saga {self.name}: pivots {pivots}; there is one point of no return"
            )
        for step in self._steps.values():
            beyond = self.beyond_pivot(step.name)
            after = any(p in self.before(step.name) for p in pivots)
            # one that is merely parallel to the pivot may be done before it, and then be undone
            if step.compensation is None and not (after or step.pivot):
                raise DefinitionError(
                    f"saga {self.name}, step {step.name!r}: no compensation; give compensation=, "
                    "or say "
                    "compensation=nothing_to_undo"
                )
            if beyond and step.retry.max_attempts < 2:
                raise DefinitionError(
                    f"saga {self.name}, step {step.name!r}: a step not before the pivot can only "
                    "go "
                    "forward; give it retry=Retry(max_attempts=…) of 2 or more"
                )
        shape = [
            [s.name, s.external, list(s.after), s.pivot, s.compensation is not nothing_to_undo]
            for s in self._steps.values()
        ]
        document = json.dumps(
            [self.name, self.version, shape, self.data.model_json_schema()], sort_keys=True
        )
        self._shape = hashlib.sha256(document.encode()).hexdigest()
        return self

    @property
    def shape(self) -> str:
        """A hash of what running instances depend on: names, kinds, edges, pivot, data schema.

        Not code, not timeouts.
        """
        self.check()
        assert self._shape is not None
        return self._shape

    def start(
        self, uow: UnitOfWork[Any], data: D | Mapping[str, Any], *, business_key: str | None = None
    ) -> UUID:
        """The saga starts if, and only if, the transaction commits; returns the instance's id.

        Args:
            uow: Of the business transaction; nothing is sent to the database before its commit.
            data: The saga's data, or a mapping that fits its model.
            business_key: Starting twice with one key is one instance; with other data it is
                SagaStartConflict at commit.

        Raises:
            MessageRefused: The data does not fit the model or cannot be stored.
            NoTransaction, AutocommitRefused: As `UnitOfWork.publish`.
        """
        from outbox_saga.saga.starting import keep_start

        return keep_start(self.check(), uow, self.dump(data), business_key)

    def dump(self, data: D | Mapping[str, Any]) -> dict[str, Any]:
        """The data as plain JSON values.

        Raises MessageRefused with the path of what does not fit.
        """
        try:
            model = data if isinstance(data, self.data) else self.data.model_validate(data)
            plain = model.model_dump(mode="json")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f".{part}" for part in first["loc"])
            raise MessageRefused(f"${where}", f"{first['msg']} (saga {self.name})") from None
        except Exception as error:  # noqa: BLE001  # users' validators and serializers
            raise MessageRefused(
                "$", f"{type(error).__name__} (saga {self.name}); its data must be JSON"
            ) from None
        dump_json(model.model_dump(mode="python") if _plain(model) else plain)
        return plain

    def load(self, plain: Mapping[str, Any]) -> D:
        """The model of stored data."""
        return self.data.model_validate(plain)

    def reload(self, plain: Mapping[str, Any]) -> D:
        """The model of what is stored; raises MessageRefused when it cannot be read back."""
        try:
            return self.load(plain)
        except Exception as error:  # noqa: BLE001  # users' validators
            raise MessageRefused(
                "$",
                f"{self.data.__name__} does not read back what it writes "
                f"({type(error).__name__}): "
                "give aliased fields validate_by_name, and types that JSON keeps",
            ) from None

    def merge(self, plain: Mapping[str, Any], added: object) -> dict[str, Any]:
        """The data with what a step returned.

        Raises MessageRefused when it does not fit the model.
        """
        if added is None:
            return dict(plain)
        if isinstance(added, BaseModel):
            added = added.model_dump()
        if not isinstance(added, Mapping):
            raise MessageRefused(
                "$", f"a step returned {type(added).__name__}; return a mapping of fields, or None"
            )
        unknown = [name for name in added if name not in self.data.model_fields]
        if unknown:
            raise MessageRefused(
                f"$.{unknown[0]}",
                f"{self.data.__name__} has no such field; add it to the model of saga {self.name}",
            )
        return self.dump({**plain, **added})


def _plain(model: BaseModel) -> bool:
    """Whether the Python values are JSON values already, so that NaN and bad keys are seen before
    pydantic renames them.
    """
    try:
        json.dumps(model.model_dump(mode="python"))
    except (TypeError, ValueError):
        return False
    return True


def _with_retry(step: Step, retry: Retry) -> Step:
    return replace(step, retry=retry)
