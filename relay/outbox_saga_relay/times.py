"""Stretches of time and moments, as people write them on a command line, and read them there."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_STRETCH = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


_LONGEST = 1000 * 365 * 86_400  # seconds: no database knows a moment that is longer ago


def _seconds(text: str) -> float | None:
    if text == "0":
        return 0.0
    match = _STRETCH.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else None
    return seconds if seconds is None or seconds <= _LONGEST else None


class Stretch(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """Seconds, from `90s`, `15m`, `2h`, `3d`, `1w` or `0`."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The stretch in seconds."""
        if isinstance(value, int | float):
            return float(value)
        seconds = _seconds(value)
        if seconds is None:
            self.fail(f"{value!r} is no stretch of time; write 90s, 15m, 2h, 3d or 0", param, ctx)
        return seconds


class Moment(click.ParamType):  # type: ignore[type-arg]  # same
    """A moment: so long ago (`2h`), or a date or time of ISO 8601; UTC unless it says otherwise.

    What was so long ago is reckoned from the database's clock: see `since`.
    """

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime | dt.timedelta:
        """The moment, or how long ago it was."""
        if isinstance(value, dt.datetime | dt.timedelta):
            return value
        seconds = _seconds(value)
        if seconds is not None:
            return dt.timedelta(seconds=seconds)
        try:
            moment = dt.datetime.fromisoformat(value)
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
            return moment.astimezone(dt.UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no moment; write 2h or 3d for so long ago, or 2026-01-31T12:00Z",
                param,
                ctx,
            )


def at(moment: dt.datetime | dt.timedelta | None, now: dt.datetime) -> dt.datetime | None:
    """The moment that was meant, when it is now."""
    return now - moment if isinstance(moment, dt.timedelta) else moment


STRETCH = Stretch()
MOMENT = Moment()


def spoken(value: float) -> str:
    """A stretch of time for people, from seconds."""
    if value < 120:
        return f"{value:.0f} s" if value >= 10 or value == int(value) else f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.0f} h" if value < 172_800 else f"{value / 86_400:.0f} days"
