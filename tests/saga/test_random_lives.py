"""Random sagas live random lives, beside an oracle that keeps what is there outside.

Each effect is there once, and undone once, after what depends on it; a key says one thing; a saga
ends, or a step of it is stuck with a reason; and what is not completed leaves nothing behind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from outbox_saga.instances import SagaState
from outbox_saga.saga import calls, changes, onward, outcomes
from tests.saga.lives.effects import Wrong
from tests.saga.lives.life import Life

LIVES = 600
A_HUNDRED = 100


@pytest.mark.parametrize("first", range(0, LIVES, A_HUNDRED))
def test_every_life_keeps_every_promise(first: int) -> None:
    _live(first, first + A_HUNDRED)


@pytest.mark.parametrize("first", range(LIVES, 20_600, 2_000))
def test_thousands_of_lives_keep_every_promise(first: int, soak: bool) -> None:
    if not soak:
        pytest.skip("thousands of lives: ./dev soak")
    _live(first, first + 2_000)


def _live(first: int, last: int) -> None:
    ends: Counter[str] = Counter()
    for seed in range(first, last):
        life = Life(seed)
        try:
            ends[life.is_lived()] += 1
        except Exception as error:  # noqa: BLE001 - with what replays it
            steps = [f"{s.name}: {s.kind} after {s.after}" for s in life.saga.steps.values()]
            told = "\n".join([*steps, *life.told[-60:]])
            pytest.fail(f"Life({seed}).is_lived(): {type(error).__name__}: {error}\n{told}")
    assert {"completed", "compensated", "stuck"} <= ends.keys(), ends


def _never(*_: Any) -> bool:
    return False


def _forward_as_it_is(_: Any, state: SagaState, __: Any) -> SagaState:
    return replace(changes.unstuck(state), status="running", reason=None)


def _without_input(*told: Any, **options: Any) -> SagaState:
    return _FAIL(*told, **options).with_step(told[2], input=None)


_FAIL = changes.fail
Plant = tuple[Any, str, Any]
WITHOUT: dict[str, list[Plant]] = {
    "what depends on a step is undone before it": [(onward, "something_waits_for", _never)],
    "a key says what it said before": [(calls, "is_open", _never)],
    "so does that of a step that has failed": [
        (module, "fail", _without_input) for module in (onward, outcomes)
    ],
    "what failed, or may be undone, is not there beside a pivot": [
        (changes, "_only_forward", _forward_as_it_is)
    ],
}


@pytest.mark.parametrize("rule", WITHOUT)
def test_without_a_rule_a_life_goes_wrong(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name, instead in WITHOUT[rule]:
        monkeypatch.setattr(where, name, instead)
    with pytest.raises(Wrong):
        _live_alone(LIVES)


def _live_alone(lives: int) -> None:
    for seed in range(lives):
        Life(seed).is_lived()
