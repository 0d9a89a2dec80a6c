"""What a check is and what it finds; values only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeAlias, TypeVar

Level: TypeAlias = Literal["error", "warning", "unknown", "info"]
LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "unknown", "info")

Case = TypeVar("Case")


class CannotLook(Exception):
    """The check cannot be made, for a reason it can name; it becomes a finding, never silence."""

    def __init__(self, reason: str, do: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.do = do


@dataclass(frozen=True, slots=True)
class Found:
    """One thing a check has found.

    Args:
        level: error: messages or sagas are lost, doubled or stand still, or will be. warning: they
            may, once something else goes wrong too. info: worth knowing.
        what: What is there; never a payload, a key or a secret.
        do: What to do about it.
    """

    level: Level
    what: str
    do: str


@dataclass(frozen=True, slots=True)
class Check(Generic[Case]):
    """One question to a database or a broker.

    Args:
        id: Stable, as in `postgresql.fsync`: alarms may go by it.
        looks_at: What it looks at, in one line.
        why: What happens when that is wrong.
        levels: What it may answer, the worst first; every check may also answer `unknown`.
        look: Asks. It may raise CannotLook, and what the driver raises.
    """

    id: str
    looks_at: str
    why: str
    levels: tuple[Level, ...]
    look: Callable[[Case], Iterable[Found]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found, with why it matters.

    Args:
        check: The id of the check.
    """

    check: str
    level: Level
    what: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found, the worst first.

    Args:
        checks: The ids of the checks that were asked for.
    """

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return self.count("error") == 0

    def count(self, level: Level) -> int:
        """How many findings have this level."""
        return sum(finding.level == level for finding in self.findings)

    def __add__(self, other: Report) -> Report:
        return report([*self.findings, *other.findings], [*self.checks, *other.checks])


def report(findings: Iterable[Finding], checks: Iterable[str]) -> Report:
    """The findings in order: the worst level first, within a level as they were found."""
    ordered = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
    return Report(tuple(ordered), tuple(checks))
