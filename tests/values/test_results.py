"""Success and Failure: what they answer, and what the type checkers make of them.

`assert_type` and `assert_never` are checked by mypy and pyright whenever this file is; running it
checks the values.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any, assert_never, assert_type

import pytest

from outbox_saga.results import Failure, Result, Success, UnwrapError, is_failure, is_success


def divide(a: int, b: int) -> Result[float, str]:
    return Success(a / b) if b else Failure("division by zero")


def test_a_match_over_both_is_exhaustive() -> None:
    def told(result: Result[float, str]) -> str:
        match result:
            case Success(value):
                assert_type(value, float)
                return f"yes, {value}"
            case Failure(error):
                assert_type(error, str)
                return f"no, {error}"
        assert_never(result)

    assert told(divide(1, 2)) == "yes, 0.5"
    assert told(divide(1, 0)) == "no, division by zero"


def test_is_success_and_is_failure_narrow_on_both_sides() -> None:
    for result in (divide(1, 2), divide(1, 0)):
        if is_success(result):
            assert_type(result, Success[float])
            assert_type(result.value, float)
            assert not is_failure(result)
        else:
            assert_type(result, Failure[str])
            assert_type(result.error, str)
            assert is_failure(result)
        if is_failure(result):
            assert_type(result, Failure[str])
        else:
            assert_type(result, Success[float])


def test_unwrapping_the_wrong_one_says_what_to_do() -> None:
    assert_type(Success(1).unwrap(), int)
    assert Success(1).unwrap() == 1
    assert Failure("no").unwrap_error() == "no"
    with pytest.raises(UnwrapError, match="match on"):
        Failure("no").unwrap()
    with pytest.raises(UnwrapError, match="match on"):
        Success(1).unwrap_error()
    assert Success(1).unwrap_or(2) == 1
    assert Failure("no").unwrap_or(2) == 2


def test_map_map_error_and_bind_work_on_their_own_side_only() -> None:
    assert_type(Success(2).map(str), Success[str])
    assert_type(Failure(2).map_error(str), Failure[str])
    assert Success(2).map(str) == Success("2")
    assert Success(2).map_error(str) == Success(2)
    assert Failure(2).map(str) == Failure(2)
    assert Failure(2).map_error(str) == Failure("2")
    assert Success(4).bind(lambda n: divide(1, n)) == Success(0.25)
    assert Success(0).bind(lambda n: divide(1, n)) == Failure("division by zero")
    assert Failure("first").bind(lambda n: divide(1, n)) == Failure("first")


def test_a_success_without_a_value_is_none() -> None:
    assert Success() == Success(None)


@pytest.mark.parametrize("result", [Success({"a": 1}), Failure("no")])
def test_results_are_values(result: Any) -> None:
    assert copy.copy(result) == result
    assert pickle.loads(pickle.dumps(result)) == result
    yes: object = Success(1)
    assert yes != Failure(1)
    with pytest.raises(AttributeError):
        setattr(result, "value" if is_success(result) else "error", 2)
