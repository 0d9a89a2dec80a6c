"""Delays: bounded, jittered, and the same again for the same work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_saga.retries import Retry

bounds = st.floats(min_value=1e-3, max_value=1e6)
policies = st.builds(
    Retry,
    max_attempts=st.integers(1, 10**9),
    initial=bounds,
    factor=st.floats(min_value=1.0, max_value=1e9),
    max_delay=bounds,
)


@given(policies, st.integers(1, 10**9), st.text())
def test_no_delay_is_longer_than_max_delay_or_shorter_than_half_its_ceiling(
    retry: Retry, attempts: int, seed: str
) -> None:
    delay = retry.delay(attempts, seed=seed)
    assert min(retry.initial, retry.max_delay) / 2 <= delay <= retry.max_delay


@given(policies, st.integers(1, 200), st.text())
def test_the_same_attempt_of_the_same_work_waits_the_same_time(
    retry: Retry, attempts: int, seed: str
) -> None:
    assert retry.delay(attempts, seed=seed) == retry.delay(attempts, seed=seed)


@given(st.integers(1, 10_000), bounds)
def test_with_factor_1_every_delay_has_the_same_ceiling(attempts: int, initial: float) -> None:
    retry = Retry(initial=initial, factor=1.0, max_delay=1e9)
    assert initial / 2 <= retry.delay(attempts, seed="a") <= initial


def test_delays_of_different_work_are_spread_over_the_upper_half() -> None:
    retry = Retry(initial=10.0, max_delay=10.0)
    delays = [retry.delay(1, seed=str(number)) for number in range(1000)]
    quarters = [sum(5 + q * 1.25 <= d < 5 + (q + 1) * 1.25 for d in delays) for q in range(4)]
    assert min(quarters) > 200, quarters


@pytest.mark.parametrize("field", ["initial", "factor", "max_delay"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused_by_name(field: str, value: float) -> None:
    options: dict[str, float] = {field: value}
    with pytest.raises(ValueError, match=field):
        Retry(**options)  # type: ignore[arg-type]


def test_attempts_are_counted_with_the_first_one() -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        Retry(max_attempts=0)
    retry = Retry(max_attempts=3)
    assert [retry.exhausted(n) for n in range(5)] == [False, False, False, True, True]
