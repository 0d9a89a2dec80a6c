"""The oracle sees what it is there to see."""

from __future__ import annotations

from outbox_saga.testing import invariants
from outbox_saga.testing.invariants import Change, Delivered, Effect, HistoryRow, Request, SagaRow


def test_a_committed_message_that_is_nowhere_is_lost() -> None:
    found = invariants.messages({"m": b"1"}, {}, {}, [])
    assert [(v.invariant, v.about) for v in found] == [("I3", "message m")]


def test_a_message_that_nobody_committed_is_seen() -> None:
    found = invariants.messages({}, {}, {}, [Delivered("m", None, b"1")])
    assert [(v.invariant, v.about) for v in found] == [("I2", "message m")]


def test_a_message_with_other_bytes_is_seen() -> None:
    found = invariants.messages({"m": b"1"}, {}, {}, [Delivered("m", None, b"2")])
    assert [(v.invariant, v.about) for v in found] == [("I2", "message m")]


def test_duplicates_are_no_violation_but_an_inversion_within_a_key_is() -> None:
    commits = [("a", "k"), ("b", "k"), ("c", None)]
    twice = [Delivered(i, "k", b"") for i in ("a", "a", "b", "a")]
    assert not invariants.order(commits, twice)
    assert invariants.order(commits, [Delivered(i, "k", b"") for i in ("b", "a")])


def test_a_second_effect_of_one_message_is_seen() -> None:
    assert invariants.handled_once([("c", "m"), ("c", "m")], [("c", "m")])
    assert invariants.handled_once([], [("c", "m")])
    assert not invariants.handled_once([("c", "m"), ("d", "m")], [("c", "m"), ("d", "m")])


def row(
    number: int, transition: str, step: str | None = None, detail: str | None = None
) -> HistoryRow:
    return HistoryRow("s", number, number // 1000, transition, step, 1, detail)


def test_a_history_that_does_not_lead_to_the_state_is_seen() -> None:
    saga = SagaRow("s", "x", "completed", 1, {"a": "done"})
    good = [row(0, "STARTED"), row(1000, "STEP_COMPLETED", "a"), row(1001, "COMPLETED")]
    assert not invariants.histories([saga], good)
    assert invariants.histories([saga], good[:2])
    assert invariants.histories([saga], good, [row(0, "STARTED", "a")]), "a row was changed"


def test_a_revision_without_a_change_and_a_change_without_a_revision_are_seen() -> None:
    assert not invariants.revisions([Change("s", 1, 2, "running", "running", changed=True)])
    assert not invariants.revisions([Change("s", 1, 1, "running", "running", changed=False)])
    assert invariants.revisions([Change("s", 1, 1, "running", "running", changed=True)])
    assert invariants.revisions([Change("s", 1, 3, "running", "running", changed=True)])
    assert invariants.revisions([Change("s", 1, 2, "completed", "running", changed=True)])


def effects(*words: str) -> list[Effect]:
    return [Effect("s", w.removeprefix("un"), "undo" if w[:2] == "un" else "do") for w in words]


def test_effects_are_undone_once_and_in_reverse() -> None:
    saga = SagaRow("s", "x", "compensated", 1, {})

    def seen(*words: str) -> set[str]:
        found = invariants.undone_once(saga, [effects(*words)], [], {"a", "b"})
        return {v.invariant for v in found}

    assert seen("a", "b", "unb", "una") == set()
    assert seen("a", "b", "una", "unb") == {"I10"}
    assert seen("a", "b", "unb") == {"I10"}
    assert seen("a", "a", "una", "una") == {"I10"}
    assert seen("una", "a") == {"I11"}


def test_a_saga_that_a_late_success_re_opened_is_undone_in_reverse_each_time() -> None:
    saga = SagaRow("s", "x", "compensated", 9, {})

    def seen(*steps: str) -> list[str]:
        names = {"": "COMPENSATED", "+": "STEP_COMPLETED", "-": "STEP_COMPENSATED"}
        history = [
            row(number, names[step[:1]], step[1:] or None) for number, step in enumerate(steps)
        ]
        return [v.invariant for v in invariants.undone_once(saga, [], history, set())]

    assert seen("+b", "-b", "", "+a", "-a", "") == []
    assert seen("+a", "+b", "-a", "-b", "") == ["I10"]
    assert seen("+c", "-c", "", "+a", "+b", "-a", "-b", "") == ["I10"]


def test_a_completed_saga_has_each_effect_once_and_nothing_undone() -> None:
    saga = SagaRow("s", "x", "completed", 1, {})
    assert not invariants.undone_once(saga, [effects("a")], [], {"a"})
    assert invariants.undone_once(saga, [effects()], [], {"a"})
    assert invariants.undone_once(saga, [effects("a", "una")], [], {"a"})


def test_another_key_on_a_retry_and_another_request_under_a_key_are_seen() -> None:
    first = Request("s", "a", "do", "k1", "{}")
    assert not invariants.same_request([first, first])
    assert invariants.same_request([first, Request("s", "a", "do", "k2", "{}")])
    assert invariants.same_request([first, Request("s", "a", "do", "k1", "{1}")])


def test_a_history_replays_to_what_waits_was_left_out_or_was_never_answered() -> None:
    history = [
        row(0, "STARTED"),
        row(1, "RUNNING", "paid", "waits for 60 s"),
        row(2, "STEP_SKIPPED", "gift"),
        row(3, "RUNNING", "ship", "its command leaves"),
        row(4, "STEP_FAILED", "ship", "no answer within 1 s to any of 1 commands: it is undone"),
        row(5, "COMPENSATION_SKIPPED", "pack", "by ada"),
    ]
    state, phases = invariants.replay(history, ["paid", "gift", "ship", "pack"])
    assert state == "running"
    assert phases == {"paid": "listening", "gift": "skipped", "ship": "done", "pack": "undone"}
