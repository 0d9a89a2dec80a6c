"""Random messages, outcomes, pauses and successors, against what must hold whatever happens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox_saga.brokers.contract import ACCEPTED, Outcome
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable
from tests.relay.house import House, Recorder, word_of
from tests.relay.test_outcomes import DOWN, IMPOSSIBLE, REFUSED, UNCONFIRMED

ANSWERS: dict[str, Outcome] = {
    "a": ACCEPTED,
    "r": REFUSED,
    "u": UNCONFIRMED,
    "p": IMPOSSIBLE,
    "d": DOWN,
}

# What one message meets at its attempts; then it is accepted.
fates = st.text("aaarrudp", max_size=3)
messages = st.lists(st.tuples(st.sampled_from([None, "k", "l", "m"]), fates), max_size=6)
# publish some, let the relay work, time passes, another relay takes over
steps = st.lists(
    st.one_of(messages, st.just("work"), st.just("later"), st.just("successor")), max_size=12
)


@pytest.mark.databases("sqlite", "postgres18")
@settings(
    max_examples=15,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=steps, page_rows=st.integers(1, 7))
async def test_nothing_is_lost_or_overtakes_its_key_and_only_the_ambiguous_comes_twice(
    house: House, steps: Sequence[object], page_rows: int
) -> None:
    house.empty()
    await _play(house, steps, page_rows)


async def _play(  # noqa: C901, PLR0915  # a play and its model, step by step
    house: House, steps: Sequence[object], page_rows: int
) -> None:
    fate: dict[str, list[str]] = {}
    keys: dict[str, str | None] = {}
    reached: list[str] = []  # what the broker has, repeats included
    twice: set[str] = set()  # what may come again: stored without an ack, or acked and not removed
    parked: set[str] = set()

    def answer(envelope: Envelope) -> Outcome:
        word = word_of(envelope)
        kind = fate[word].pop(0) if fate[word] else "a"
        if kind in "au":
            reached.append(word)
        if kind == "u":
            twice.add(word)
        if kind == "p":
            parked.add(word)
        return ANSWERS[kind]

    relay = house.relay(Recorder(answer), page_rows=page_rows)

    async def work() -> None:
        try:
            await relay.run_once()
        except BrokerUnavailable:
            await relay._start_over()

    async def succeed() -> None:
        nonlocal relay
        twice.update(house.waiting())  # acknowledged ones among them are not yet removed
        await relay.store.lease.release()
        relay.store.connection.close()
        relay = house.relay(Recorder(answer), page_rows=page_rows)

    for step in steps:
        if step == "work":
            await work()
        elif step == "later":
            house.advance(61)
        elif step == "successor":
            await succeed()
        elif isinstance(step, list):
            for key, kinds in step:
                word = f"{len(fate)}"
                fate[word], keys[word] = list(kinds), key
                house.say(word, key=key)
    for _ in range(8 * len(fate) + 8):
        house.advance(61)
        await work()
    await relay.store.lease.release()

    dead = [word_of(row.body) for row in house.dead()]
    waiting = house.waiting()
    stuck_keys = {keys[word] for word in dead} - {None}
    assert set(dead) == parked
    assert set(reached) | set(dead) | set(waiting) == set(fate), "lost"
    assert {keys[word] for word in waiting} <= stuck_keys, "left behind without a parked key"
    again = {word for word, count in Counter(reached).items() if count > 1}
    assert again <= twice, "published twice without need"
    firsts: dict[str, list[int]] = defaultdict(list)
    for word in dict.fromkeys(reached):
        if (key := keys[word]) is not None:
            firsts[key].append(int(word))
    assert all(order == sorted(order) for order in firsts.values()), firsts
    await house.close()
