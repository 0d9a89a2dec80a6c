"""A decision without a person or a reason is none."""

from __future__ import annotations

import pytest

from outbox_saga.decisions import MAX_REASON, Decision
from outbox_saga.errors import ActionRefused, DecisionRefused


@pytest.mark.parametrize(
    ("operator", "reason", "told"),
    [
        ("", "because", "operator is missing"),
        ("  ", "because", "operator is missing"),
        ("ada", "", "reason is missing"),
        ("ada\n", "because", "control character"),
        ("ada", "because\x1b[2J", "control character"),
        ("ada", "because\udc80", "lone surrogate"),
        ("é" * 128, "because", "longer than 255 bytes"),
        ("ada", "x" * (MAX_REASON + 1), "longer than 2000 characters"),
    ],
)
def test_what_the_audit_could_not_keep_is_refused(operator: str, reason: str, told: str) -> None:
    with pytest.raises(DecisionRefused, match=told) as refused:
        Decision(operator, reason)
    assert isinstance(refused.value, ActionRefused)


def test_a_name_of_255_bytes_and_a_long_reason_are_taken() -> None:
    decision = Decision("é" * 127 + "e", "x" * MAX_REASON)
    assert len(decision.operator.encode()) == 255
