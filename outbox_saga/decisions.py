"""Who decided something, and why: what every action of an operator begins with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from outbox_saga.errors import DecisionRefused

MAX_OPERATOR = 255  # bytes
MAX_REASON = 2000  # characters

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the audit keeps of a person's decision, for good.

        Decision("ada", "the customer cancelled, see ticket 812")

    Args:
        operator: Who: a name by which the person is found again; at most 255 bytes.
        reason: Why, for whoever asks later; at most 2,000 characters.

    Raises:
        DecisionRefused: Either is missing, too long, or holds control characters.
    """

    operator: str
    reason: str

    def __post_init__(self) -> None:
        _check("operator", self.operator)
        _check("reason", self.reason)
        if len(self.operator.encode()) > MAX_OPERATOR:
            raise DecisionRefused(f"the operator's name is longer than {MAX_OPERATOR} bytes")
        if len(self.reason) > MAX_REASON:
            raise DecisionRefused(f"the reason is longer than {MAX_REASON} characters; shorten it")


def _check(name: str, value: str) -> None:
    if not value.strip():
        raise DecisionRefused(f"the {name} is missing; say who decides, and why")
    if _CONTROL.search(value):
        raise DecisionRefused(f"the {name} contains a control character; remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DecisionRefused(
            f"the {name} contains a lone surrogate, which is not UTF-8; remove it"
        ) from None
