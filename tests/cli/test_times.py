"""Stretches of time and moments as people write them."""

from __future__ import annotations

import datetime as dt

import click
import pytest

from outbox_saga_relay.printing import shown
from outbox_saga_relay.times import MOMENT, STRETCH, at

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("3d", 259_200), ("1w", 604_800)],
)
def test_a_stretch_has_a_unit(text: str, seconds: float) -> None:
    assert STRETCH.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["30", "", "d", "-1d", "1y", "1d2h", "inf", "nan", "999999d"])
def test_what_is_no_stretch_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no stretch of time"):
        STRETCH.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - dt.timedelta(hours=2)),
        ("2026-01-31", dt.datetime(2026, 1, 31, tzinfo=dt.UTC)),
        ("2026-01-31T12:30Z", dt.datetime(2026, 1, 31, 12, 30, tzinfo=dt.UTC)),
        ("2026-01-31T12:30+02:00", dt.datetime(2026, 1, 31, 10, 30, tzinfo=dt.UTC)),
    ],
)
def test_a_moment_is_so_long_ago_or_a_date(text: str, moment: dt.datetime) -> None:
    assert at(MOMENT.convert(text, None, None), NOW) == moment


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="no moment"):
        MOMENT.convert("yesterday", None, None)


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    hostile = "a\x1b[2J\x9b31m\u202eb\u200bc\u2028d\r\n\te\ud800é漢"
    assert shown(hostile) == (r"a\x1b[2J\x9b31m\u202eb\u200bc\u2028d\r\n\te\ud800é漢")
    assert shown("a\n\tb\r", lines=True) == "a\n\tb\\r"


@pytest.mark.parametrize("text", ["999999d", "9" * 400 + "s", "0001-01-01T00:00+14:00"])
def test_a_moment_that_no_clock_knows_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no moment"):
        MOMENT.convert(text, None, None)
