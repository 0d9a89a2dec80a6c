"""`Success` and `Failure`: what a step or a handler answers.

A `Failure` is a business "no": nothing is retried, the saga compensates. An exception is a
technical failure: it is retried within the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeAlias, TypeVar, final

from typing_extensions import TypeIs

from outbox_saga.errors import OutboxSagaError

T_co = TypeVar("T_co", covariant=True)
E_co = TypeVar("E_co", covariant=True)
U = TypeVar("U")
F = TypeVar("F")
T = TypeVar("T")
E = TypeVar("E")


class UnwrapError(OutboxSagaError):
    """`unwrap()` of a Failure, or `unwrap_error()` of a Success. Match on the result instead."""


@final
@dataclass(frozen=True, slots=True)
class Success(Generic[T_co]):
    """The step did its work; a mapping in `value` is merged into the saga's data."""

    value: T_co = None  # type: ignore[assignment]  # Success() is Success(None)

    def is_success(self) -> Literal[True]:
        """True."""
        return True

    def is_failure(self) -> Literal[False]:
        """False."""
        return False

    def unwrap(self) -> T_co:
        """The value."""
        return self.value

    def unwrap_or(self, default: object) -> T_co:
        """The value; the default is for a Failure."""
        return self.value

    def unwrap_error(self) -> NoReturn:
        """Raise UnwrapError: a Success has no error."""
        raise UnwrapError(f"{self!r} has no error; match on Success and Failure instead")

    def map(self, function: Callable[[T_co], U]) -> Success[U]:
        """Success of the function's answer for this value."""
        return Success(function(self.value))

    def map_error(self, function: Callable[[Any], object]) -> Success[T_co]:
        """This very Success: there is no error to map."""
        return self

    def bind(self, function: Callable[[T_co], Success[U] | Failure[F]]) -> Success[U] | Failure[F]:
        """The result of the function for this value."""
        return function(self.value)


@final
@dataclass(frozen=True, slots=True)
class Failure(Generic[E_co]):
    """A business "no": its effects are rolled back, nothing is retried, the saga compensates."""

    error: E_co

    def is_success(self) -> Literal[False]:
        """False."""
        return False

    def is_failure(self) -> Literal[True]:
        """True."""
        return True

    def unwrap(self) -> NoReturn:
        """Raise UnwrapError: a Failure has no value."""
        raise UnwrapError(f"{self!r} has no value; match on Success and Failure instead")

    def unwrap_or(self, default: U) -> U:
        """The default."""
        return default

    def unwrap_error(self) -> E_co:
        """The error."""
        return self.error

    def map(self, function: Callable[[Any], object]) -> Failure[E_co]:
        """This very Failure: there is no value to map."""
        return self

    def map_error(self, function: Callable[[E_co], F]) -> Failure[F]:
        """Failure of the function's answer for this error."""
        return Failure(function(self.error))

    def bind(self, function: Callable[[Any], object]) -> Failure[E_co]:
        """This very Failure: the function is not called."""
        return self


Result: TypeAlias = Success[T] | Failure[E]


def is_success(result: Success[T] | Failure[E]) -> TypeIs[Success[T]]:
    """True for a Success; narrows the type for mypy, pyright and ty."""
    return isinstance(result, Success)


def is_failure(result: Success[T] | Failure[E]) -> TypeIs[Failure[E]]:
    """True for a Failure; narrows the type for mypy, pyright and ty."""
    return isinstance(result, Failure)
