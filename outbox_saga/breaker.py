"""Circuit breakers: what stops calling another side that does not answer, and when. Pure.

M. Nygard, *Release It!*, 2nd edition (2018), "Circuit Breaker": closed, open, half-open. Here all
processes of a database share each breaker: half-open lets one call through, wherever it is made.
"""

from __future__ import annotations

import datetime as dt
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from outbox_saga.errors import ConfigurationError, DefinitionError
from outbox_saga.retries import is_time, is_whole

FAILURES = 5  # one after another
SECONDS = 60.0
SPREAD = 0.1  # of `seconds`: those that were held back do not come all at the same moment

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,200}")  # as any saga's and any step's, with a dot


@dataclass(frozen=True, slots=True)
class Breaker:
    """After so many failures in a row nobody calls the other side for a while, and then one does.

    Failures of every process that shares the database count together. While it is open, calls,
    compensations and questions of its steps wait, and use up no attempt; then one call goes as a
    probe. A business no counts as an answer. The saga's deadline goes on meanwhile.

    Args:
        name: Steps of all sagas that give the same name share it; None: the step's own, called
            `saga.step`.
        failures: In a row until it opens; at least 1.
        seconds: That it is open before the next probe.

    Raises:
        ValueError: A bound that is not positive or has no end, or a name with other characters
            than letters, digits, '.', '_' and '-'.
    """

    name: str | None = None
    failures: int = FAILURES
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} is not a breaker's name: use letters, digits, '.', '_' and '-', "
                "starting with a letter or '_', 201 at most"
            )
        if not is_whole(self.failures) or self.failures < 1:
            raise ValueError(f"failures is {self.failures!r}; give a whole number, 1 or more")
        if not is_time(self.seconds):
            raise ValueError(
                f"seconds is {self.seconds!r}; give more than 0, and less than a century"
            )


State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class Stand:
    """How a breaker stands, as its row says.

    Args:
        failures: In a row.
        until: When it is, or was, to let a probe through; None: it is closed.
        probe_until: When a probe that is on its way counts as lost.
        trips: How often it has opened, ever.
        now: By the database's clock, when it was read.
    """

    name: str
    now: dt.datetime
    failures: int = 0
    until: dt.datetime | None = None
    probe_until: dt.datetime | None = None
    trips: int = 0
    opened_at: dt.datetime | None = None

    @property
    def state(self) -> State:
        """closed, open, or half-open: a probe may go, or is on its way."""
        if self.until is None:
            return "closed"
        return "open" if self.until > self.now else "half-open"

    @property
    def probing(self) -> bool:
        """A probe is on its way."""
        return self.probe_until is not None and self.probe_until > self.now

    def failed(self, breaker: Breaker, began: dt.datetime | None = None) -> Stand:
        """After another failure, of a call that began then; None: that is not known.

        One from before it opened changes nothing.
        """
        if self._opened_since(began):
            return self
        failures = self.failures + 1
        if self.until is None and failures < breaker.failures:
            return replace(self, failures=failures)
        return replace(
            self,
            failures=failures,
            until=self.now + dt.timedelta(seconds=breaker.seconds),
            probe_until=None,
            trips=self.trips + 1,
            opened_at=self.now,
        )

    def answered(self, began: dt.datetime | None = None) -> Stand:
        """After an answer to a call that began then; None: that is not known.

        One from before it opened changes nothing.
        """
        return self if self._opened_since(began) else self.closed()

    def _opened_since(self, began: dt.datetime | None) -> bool:
        # a call may last longer than it is open: a probe may be on its way, and stays the only one
        if self.state != "half-open" or began is None or self.opened_at is None:
            return self.state == "open"
        return began < self.opened_at

    def closed(self) -> Stand:
        """As if it had never failed, but for how often it has opened."""
        return replace(self, failures=0, until=None, probe_until=None)


@dataclass(frozen=True, slots=True)
class Gates:
    """Which calls may go now.

    Args:
        shut: Breakers that let nothing through, with the moment at which to look again.
        ajar: Those that let one call through.
    """

    shut: Mapping[str, dt.datetime] = field(default_factory=dict)
    ajar: frozenset[str] = frozenset()

    def held_until(
        self, breaker: Breaker, asked: Iterable[str], now: dt.datetime, seed: str
    ) -> dt.datetime | None:
        """Until when a call waits; None: it goes.

        Args:
            asked: Breakers of the calls that go with it.
            seed: Of the jitter.
        """
        assert breaker.name is not None
        jitter = zlib.crc32(f"{seed}:{breaker.name}".encode()) / 0xFFFFFFFF
        wait = dt.timedelta(seconds=breaker.seconds * SPREAD * jitter)
        if breaker.name in self.shut:
            return self.shut[breaker.name] + wait
        one_goes = breaker.name in self.ajar and breaker.name in asked
        return now + dt.timedelta(seconds=breaker.seconds * SPREAD) + wait if one_goes else None


def gates_of(stands: Iterable[Stand], breakers: Mapping[str, Breaker]) -> Gates:
    """What these let through."""
    shut, ajar = {}, set()
    for stand in stands:
        if stand.until is None:
            continue
        if stand.until > stand.now:
            shut[stand.name] = stand.until
        elif stand.probing:
            shut[stand.name] = _look_again(stand, breakers[stand.name])
        else:
            ajar.add(stand.name)
    return Gates(shut, frozenset(ajar))


def _look_again(stand: Stand, breaker: Breaker) -> dt.datetime:
    """While a probe is on its way: soon, for it may have answered; it is lost in the end."""
    soon = stand.now + dt.timedelta(seconds=breaker.seconds * SPREAD)
    return soon if stand.probe_until is None else min(soon, stand.probe_until)


def named(given: object, where: str, own: str) -> Breaker | None:
    """The breaker that a step's `breaker=` says.

    Raises DefinitionError for what says none.
    """
    if given is None or given is False:
        return None
    try:
        breaker = _breaker(given)
    except ValueError as error:
        raise DefinitionError(f"{where}: {error}") from error
    if breaker is None:
        raise DefinitionError(
            f"{where}: breaker= is a name, a Breaker(...), or True for one of its own, not "
            f"{given!r}"
        )
    return breaker if breaker.name is not None else replace(breaker, name=own)


def _breaker(given: Any) -> Breaker | None:
    if given is True:
        return Breaker()
    if isinstance(given, str):
        return Breaker(given)
    return given if isinstance(given, Breaker) else None


def agreed(breakers: Iterable[Breaker]) -> dict[str, Breaker]:
    """By name.

    Raises ConfigurationError where one name has two rules: which of them holds would depend on who
    fails.
    """
    found: dict[str, Breaker] = {}
    for breaker in breakers:
        assert breaker.name is not None
        other = found.setdefault(breaker.name, breaker)
        if other != breaker:
            raise ConfigurationError(
                f"breaker {breaker.name!r} is given twice, with failures={other.failures}, "
                f"seconds={other.seconds:g} and with failures={breaker.failures}, "
                f"seconds={breaker.seconds:g}; give it one rule, or two names"
            )
    return found
