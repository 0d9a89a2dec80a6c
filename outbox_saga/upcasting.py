"""Bodies of older versions are read as the version that this process knows.

    class OrderPlaced(Event, topic="orders", version=3):
        order_id: int
        amount: int
        currency: str

        @upcaster(from_version=1)
        @staticmethod
        def name_the_currency(body: dict[str, Any]) -> dict[str, Any]:
            return {**body, "currency": "EUR"}

        @upcaster(from_version=2)
        @staticmethod
        def rename_total(body: dict[str, Any]) -> dict[str, Any]:
            body["amount"] = body.pop("total")
            return body

They stand inside the class, so that no process can have the class without them, and so that the
class statement itself finds what is missing or stands twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from outbox_saga.errors import DefinitionError, MessageRefused
from outbox_saga.payloads import dump_json, load_json

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
F = TypeVar("F", bound=Upcast)

if TYPE_CHECKING:
    _StaticMethod = staticmethod[[dict[str, Any]], dict[str, Any]]
else:
    _StaticMethod = staticmethod  # cannot be subscribed at run time


class _Declared(_StaticMethod):
    """An upcaster in the body of its class; pydantic leaves static methods alone."""

    def __init__(self, function: Upcast, from_version: int) -> None:
        super().__init__(function)
        self.from_version = from_version


def upcaster(*, from_version: int) -> Callable[[F], F]:
    """Every body of this version is read as one of the next, and never stored as such.

    Declares, inside a message class, the step from one version of its body to the next. What is
    older goes through the steps of all versions between, in order. Subclasses do not inherit it:
    they are types of their own.

    The function gets the decoded JSON object, its own copy, and returns the object as the next
    version would have had it. It has to be pure: it runs in the event loop, at every attempt and
    every replay, and has to give the same each time.

    Args:
        from_version: The version it takes, from 1; it returns the next one.

    Raises:
        DefinitionError: No such version, or no plain function. The class statement raises it too:
            for two upcasters of one version, for one from the class's own version or a newer one,
            for a gap between the oldest and the class's version.

    Example:
        @upcaster(from_version=1)
        @staticmethod
        def name_the_currency(body: dict[str, Any]) -> dict[str, Any]:
            return {**body, "currency": "EUR"}
    """
    if type(from_version) is not int or from_version < 1:
        raise DefinitionError(
            f"upcaster: from_version {from_version!r} is not a version; count from 1"
        )

    def declare(function: F) -> F:
        if isinstance(function, _Declared):
            raise DefinitionError(
                f"upcaster from version {from_version}: {_name(function.__func__)} is one "
                f"already, from version {function.from_version}; declare a function for each"
            )
        plain = function.__func__ if isinstance(function, staticmethod) else function
        if not callable(plain):  # a classmethod, say
            raise DefinitionError(
                f"upcaster from version {from_version}: a {type(plain).__name__} is not a "
                "function; put @upcaster above @staticmethod"
            )
        if (
            inspect.iscoroutinefunction(plain)
            or inspect.isgeneratorfunction(plain)
            or inspect.isasyncgenfunction(plain)
        ):
            raise DefinitionError(
                f"upcaster from version {from_version}: {_name(plain)} answers later; make it a "
                "plain function that returns the object"
            )
        return cast("F", _Declared(plain, from_version))

    return declare


def upcasters_of(message_class: type, version: int) -> Mapping[int, Upcast]:
    """The class's own upcasters, from the oldest version it reads to this one, without a gap.

    Args:
        message_class: Those it inherits are not its own.
        version: The class's version.

    Raises:
        DefinitionError: Two for one version, one that leads nowhere, or a gap.
    """
    steps: dict[int, Upcast] = {}
    about = message_class.__name__
    for member in vars(message_class).values():
        declared: Any = member
        while isinstance(declared, staticmethod) and not isinstance(declared, _Declared):
            declared = declared.__func__  # @staticmethod stands above @upcaster
        if not isinstance(declared, _Declared):
            continue
        start, function = declared.from_version, declared.__func__
        if start in steps:
            raise DefinitionError(
                f"{about}: {_name(steps[start])} and {_name(function)} are both upcasters from "
                f"version {start}; remove one"
            )
        if start >= version:
            raise DefinitionError(
                f"{about}: {_name(function)} is an upcaster from version {start}, but the class "
                f"is version {version}; say version={start + 1} or more in the class statement"
            )
        steps[start] = function
    oldest = min(steps, default=version)
    for start in range(oldest, version):
        if start not in steps:
            raise DefinitionError(
                f"{about}: an upcaster from version {start} is missing, between {oldest} and "
                f"{version}; declare it, if only one that returns the body as it is"
            )
    return steps


def upcast(
    body: bytes, steps: Mapping[int, Upcast], *, type_name: str, version: int, to: int
) -> bytes:
    """The body as a publisher of version `to` would have written it; the given one is not changed.

    Args:
        body: UTF-8 JSON of an object.
        steps: As from `upcasters_of`; at least one.
        type_name: For what is told.
        version: Of the body, older than `to`.
        to: The version of the class.

    Raises:
        MessageRefused: The body is no JSON object or is older than the oldest step; or a step
            raised, or returned what is no JSON object.
    """
    if version not in steps:
        mend = (
            f"declare upcaster(from_version={version}), deploy it, then retry this message"
            if version > 0
            else "versions count from 1, so mend its publisher"
        )
        raise MessageRefused(
            "version",
            f"{type_name} version {version} is older than {min(steps)}, the oldest from which "
            f"this process reads: {mend}",
        )
    for start in range(version, to):
        body = _next(body, steps[start], f"{type_name} from version {start}")
    return body


def _next(body: bytes, function: Upcast, of: str) -> bytes:
    """The body one version on.

    Bytes between the steps, so that none can change what another one has kept.
    """
    value = load_json(body)
    if not isinstance(value, dict):
        raise MessageRefused("$", f"is a {type(value).__name__}, not a JSON object; send one")
    mend = f"correct {_name(function)}, the upcaster of {of}, deploy it, then retry this message"
    try:
        answer: object = function(value)
    except MessageRefused as refused:
        raise MessageRefused(refused.path, f"{refused.reason}; or {mend}") from refused
    except Exception as error:
        # by class and place: its text may show values
        raise MessageRefused("$", f"{type(error).__name__} {_place(error)}: {mend}") from error
    if not isinstance(answer, dict):
        raise MessageRefused("$", f"{type(answer).__name__} returned, not a dict: {mend}")
    try:
        return dump_json(answer)
    except MessageRefused as refused:
        raise MessageRefused(refused.path, f"{refused.reason}: {mend}") from refused


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "raised"
