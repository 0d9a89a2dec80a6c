"""So many a second, over any stretch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_saga.pacing import Pace


@given(
    st.floats(0.1, 1000),
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 30)), min_size=1, max_size=40),
)
def test_whoever_keeps_to_the_pauses_is_never_faster_than_the_rate(
    rate: float, steps: list[tuple[int, float]]
) -> None:
    now = [1000.0]
    pace = Pace(rate, lambda: now[0])
    gone: list[tuple[float, int]] = []
    for count, idle in steps:
        now[0] += max(pace.pause(), idle)
        gone.append((now[0], count))
        pace.went(count)
    for first in range(len(gone)):
        for last in range(first + 1, len(gone)):
            between = sum(count for _, count in gone[first:last])
            assert between <= rate * (gone[last][0] - gone[first][0]) + 1e-3


def test_without_a_rate_nothing_waits() -> None:
    pace = Pace()
    pace.went(1_000_000)
    assert pace.pause() == 0


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Pace(rate)
