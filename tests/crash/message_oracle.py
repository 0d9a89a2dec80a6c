"""What must be true of messages at rest, beside where they have arrived.

What operators did is on record exactly once, nothing is left leased, blocked or delayed, each
message entered the outbox once and once more for each replay, and callers were told the truth.
"""

from __future__ import annotations

from outbox_saga.testing.invariants import Violation
from tests.crash.world import Facts


def discarded(facts: Facts) -> set[str]:
    """Messages that a person discarded, by the record, and that are gone."""
    prefix = "message "
    given_up = {
        a.subject.removeprefix(prefix)
        for a in facts.messages.actions
        if a.action == "dead_letter.discard"
    }
    return given_up & set(facts.committed)


def given_up(facts: Facts) -> set[tuple[str, str]]:
    """Consumers and the ids of what a person discarded for them."""
    return {
        (a.detail["consumer"], a.subject.removeprefix("message "))
        for a in facts.messages.actions
        if a.action == "waiting.discard"
    }


def at_rest(facts: Facts, *, archive: bool) -> list[Violation]:
    """All that is wrong.

    Args:
        archive: Relays keep what they published.
    """
    seen = facts.messages
    found = [Violation("I15", f"message {id_}", "waits for its time") for id_ in seen.delayed]
    found += [Violation("I18", f"partition {p}", "is still leased") for p in seen.leased]
    found += [Violation("I18", f"waiting message {p}", "is still leased") for p in seen.held]
    found += [
        Violation("I16", f"partition {p}, position {n}", f"key {k!r} waits for nothing")
        for p, k, n in seen.blocked
    ]
    return found + _on_record(facts) + _kept(facts, archive=archive) + _told(facts)


def _on_record(facts: Facts) -> list[Violation]:
    """I20: a replay is on record if, and only if, the message entered once more."""
    seen = facts.messages
    found = []
    by_archive = seen.count("archive.replay") > 0
    for id_ in facts.committed:
        entered = seen.entered.get(id_, 0)
        again = seen.count("dead_letter.replay", f"message {id_}")
        if by_archive:
            again = max(again, entered - 1)  # of the archive only the whole replay is on record
        if entered != 1 + again:
            told = f"entered the outbox {entered} times, replays on record: {again}"
            found.append(Violation("I20", f"message {id_}", told))
        if id_ in seen.replays and seen.replays[id_] < again:
            told = f"{again} replays, the broker was told of {seen.replays[id_]}"
            found.append(Violation("I20", f"message {id_}", told))
    for id_ in discarded(facts):
        times = seen.count("dead_letter.discard", f"message {id_}")
        if times != 1:
            found.append(Violation("I20", f"message {id_}", f"discarded {times} times on record"))
        if id_ in seen.replays or id_ in facts.dead:
            found.append(Violation("I20", f"message {id_}", "on record as discarded, and is not"))
    return found


def _kept(facts: Facts, *, archive: bool) -> list[Violation]:
    """I3: what was published is in the archive, once for each time."""
    if not archive:
        return []
    seen = facts.messages
    found = []
    for id_ in seen.replays:
        # a dead letter left the outbox without having been published
        wanted = seen.entered[id_] - seen.count("dead_letter.replay", f"message {id_}")
        if seen.kept.get(id_, 0) != wanted:
            told = f"published {wanted} times, kept {seen.kept.get(id_, 0)} times"
            found.append(Violation("I3", f"message {id_}", told))
    return found


def _told(facts: Facts) -> list[Violation]:
    """I1: whoever was told "committed" or "rolled back" was told the truth."""
    found = []
    for report in facts.messages.reports:
        there = [id_ in facts.committed for id_ in report["ids"]]
        if report["told"] == "committed" and not all(there):
            told = "its caller was told that it was committed"
            found.append(Violation("I1", f"messages {report['ids']}", told))
        if report["told"] == "rolled back" and any(there):
            told = "committed, and its caller was told that it was rolled back"
            found.append(Violation("I1", f"messages {report['ids']}", told))
        if any(there) and not all(there):
            found.append(Violation("I1", f"messages {report['ids']}", "half of a unit is there"))
    return found
