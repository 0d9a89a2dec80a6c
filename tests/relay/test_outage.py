"""How a relay comes back to a broker that was away: one probe, then ever more, by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from outbox_saga.brokers.contract import ACCEPTED, Outcome, Refused, Settled
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerDown, ConfigurationError
from outbox_saga.retries import Retry
from outbox_saga_relay.outage import Outage
from outbox_saga_relay.rate import BURST, FIRST, LAST, LONGEST, Rate
from outbox_saga_relay.relay import Relay
from tests.relay.house import House, word_of
from tests.relay.test_running import running, until

AWAY = BrokerDown("away", code="away")
RETRY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=5.0)


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sent_by(outage: Outage, time: Time, seconds: float, *, step: float = 0.001) -> list[int]:
    """How many were sent at each step; each is acknowledged at once."""
    counts = []
    for _ in range(round(seconds / step)):
        time.now += step
        count = outage.allowance(0)
        outage.sent(count)
        outage.up(count)
        counts.append(count)
    return counts


def away_for(outage: Outage, time: Time, seconds: float) -> None:
    """Its probes fail for so long, and then one is accepted."""
    end = time.now + seconds
    while time.now < end:
        outage.down(AWAY)
        time.now = min(end, time.now + outage.pause(0) + 0.001)
    outage.up(1)


def test_while_it_is_away_one_message_at_a_time_asks_for_it_ever_less_often() -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", now=time)
    outage.down(AWAY)
    pauses = []
    for _ in range(10):
        assert outage.allowance(0) == 0
        pauses.append(outage.pause(0))
        time.now += outage.pause(0)
        assert outage.allowance(0) == 1
        assert outage.allowance(1) == 0, "while a probe is on its way there is no other"
        outage.down(AWAY)
    assert pauses == pytest.approx([RETRY.delay(n, seed="a") for n in range(1, 11)])
    assert min(pauses[5:]) >= 2.5


def test_after_a_long_outage_the_rate_grows_from_a_hundred_a_second_by_the_clock() -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", now=time)
    away_for(outage, time, 300)
    began = time.now
    assert outage.allowance(0) == 0, "the probe was the first, and its ack allows no page"
    counts = sent_by(outage, time, LONGEST)
    assert sum(counts[:1000]) <= FIRST * (1 + BURST) * 2
    for first in range(0, len(counts), 50):
        for length in (1, 50, 500):
            window = counts[first : first + length]
            now = began + (first + len(window)) * 0.001
            rate = FIRST * (LAST / FIRST) ** ((now - began) / LONGEST)
            assert sum(window) <= rate * (len(window) * 0.001 + BURST) + 1
    assert sum(counts) > 100_000, "it does not dawdle either"
    time.now += 0.001
    assert outage.allowance(0) > 100_000, "after that there is no bound but what was acknowledged"


def test_what_is_on_its_way_grows_by_doubling_however_much_time_has_passed() -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", now=time)
    away_for(outage, time, 60)
    time.now += LONGEST
    flights = []
    for _ in range(4):
        count = outage.allowance(0)
        outage.sent(count)
        outage.up(count)
        flights.append(count)
    assert flights == [2, 4, 8, 16]


def test_a_broker_that_was_away_for_a_moment_is_not_spared_for_longer() -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", now=time)
    away_for(outage, time, 0.5)
    sent_by(outage, time, 0.51)
    assert outage.allowance(0) > 1_000


def test_one_that_goes_down_under_what_came_back_is_spared_as_after_one_long_outage() -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", now=time)
    away_for(outage, time, 60)
    sent_by(outage, time, LONGEST / 2)
    away_for(outage, time, 0.1)
    counts = sent_by(outage, time, LONGEST / 2)
    assert sum(counts) < FIRST * (LAST / FIRST) ** 0.5 * LONGEST / 2


def test_a_bound_that_was_asked_for_holds_in_every_stretch_of_time() -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", most=200.0, now=time)
    counts = sent_by(outage, time, 20)
    away_for(outage, time, 60)
    counts += sent_by(outage, time, 20)
    for length in (1, 100, 1000, 20_000):
        for first in range(0, len(counts), 500):
            window = counts[first : first + length]
            assert sum(window) <= 200 * (len(window) * 0.001 + BURST) + 1
    assert sum(counts[:20_000]) >= 0.98 * 200 * 20


def test_time_that_nothing_was_sent_in_is_made_up_for_by_a_moment_at_most() -> None:
    rate = Rate(1000.0)
    rate.allowance(0.0)
    assert rate.allowance(3600.0) == 1000 * BURST


@pytest.mark.parametrize("most", [0.1, 2.0, 10.0, 50.0, 5000.0])
def test_a_pause_is_as_long_as_it_takes(most: float) -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", most=most, now=time)
    for _ in range(100):
        outage.sent(outage.allowance(0))
        assert outage.allowance(0) == 0
        time.now += outage.pause(0) + 1e-9
        assert outage.allowance(0) > 0


@pytest.mark.parametrize("most", [0.1, 1.0, 10.0, 19.0, 30.0])
def test_who_sleeps_through_each_pause_sends_what_was_asked_for(most: float) -> None:
    time = Time()
    outage = Outage(RETRY, seed="a", most=most, now=time)
    begun, sent = time.now, 0
    while sent < 50:
        sent += (count := outage.allowance(0))
        outage.sent(count)
        time.now += outage.pause(0) + 1e-9
    assert sent <= most * (time.now - begun) + max(1.0, most * BURST)
    assert sent >= 0.95 * most * (time.now - begun)


@pytest.mark.parametrize("most", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.databases("sqlite")
async def test_a_bound_that_lets_nothing_or_everything_through_is_refused(
    house: House, most: float
) -> None:
    with pytest.raises(ConfigurationError, match="max_rate"):
        house.relay(Away(), max_rate=most)


class Away:
    """A broker that takes nothing until it is back."""

    def __init__(self) -> None:
        self.back = False
        self.refused: list[int] = []
        self.words: list[str] = []
        self.came = asyncio.Condition()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        async with self.came:
            if self.back:
                self.words += map(word_of, envelopes)
            else:
                self.refused.append(len(envelopes))
            self.came.notify_all()
        return [ACCEPTED if self.back else Refused(AWAY)] * len(envelopes)

    async def until(self, words: int, refused: int = 0) -> None:
        async with self.came, asyncio.timeout(20):
            await self.came.wait_for(
                lambda: len(self.words) >= words and len(self.refused) >= refused
            )


def _with_a_clock(relay: Relay) -> Time:
    time = Time()
    relay._outage._now = time
    return time


@pytest.mark.databases("sqlite", "postgres18")
async def test_a_running_relay_sends_what_piled_up_no_faster_than_the_clock_allows(
    house: House,
) -> None:
    house.say(*range(2000))
    broker = Away()
    relay = house.relay(broker, poll=0.02)
    time = _with_a_clock(relay)
    async with running(relay):
        await broker.until(0, refused=1)
        for failed in range(2, 8):
            time.now += 5.0
            await broker.until(0, refused=failed)
        broker.back = True
        time.now += 5.0
        await broker.until(1)
        await until(house, lambda: len(house.waiting()) == 1999, "the probe is removed")
        assert len(broker.words) == 1, "however much real time passes"
        for passed, least in ((1.0, 2), (2.0, 8), (3.0, 25)):
            time.now += passed
            await broker.until(least)
            bound = sum(FIRST * (LAST / FIRST) ** (s / LONGEST) for s in (1.0, 3.0, 6.0))
            assert len(broker.words) <= bound * BURST + 4
        time.now += LONGEST
        await broker.until(2000)
    assert broker.refused[1:] == [1] * 6
    assert house.waiting() == []
    assert house.dead() == []


@pytest.mark.databases("sqlite")
async def test_page_by_page_the_bound_holds_too(house: House) -> None:
    house.say(*range(50))
    broker = Away()
    broker.back = True
    relay = house.relay(broker, max_rate=100.0)
    time = _with_a_clock(relay)
    task = asyncio.create_task(relay.run_once())
    while len(broker.words) < 50:
        before = len(broker.words)
        time.now += 0.05
        await broker.until(min(50, before + 1))
        assert len(broker.words) <= before + 6
    assert await task == 50


@pytest.mark.databases("sqlite", "postgres18")
async def test_one_whose_probe_fails_every_time_keeps_no_other_from_going(house: House) -> None:
    """A broker, or its adapter, may say of one message what is said of a broker that is down."""

    class Particular(Away):
        async def publish(
            self, envelopes: Sequence[Envelope], settled: Settled | None = None
        ) -> Sequence[Outcome]:
            words = [word_of(envelope) for envelope in envelopes]
            async with self.came:
                self.words += [word for word in words if word != "bad"]
                self.refused += [1] * ("bad" in words)
                self.came.notify_all()
            return [Refused(AWAY) if word == "bad" else ACCEPTED for word in words]

    house.say("bad", "behind it", key="a")
    broker = Particular()
    quick = Retry(max_attempts=1_000_000, initial=0.01, max_delay=0.02)
    async with running(house.relay(broker, poll=0.02, outage=quick)):
        await broker.until(0, refused=2)
        house.say(*(f"b{n}" for n in range(5)), key="b")
        house.say("loose")
        await broker.until(6)
        await until(house, lambda: len(house.waiting()) == 2, "the others are removed")
    assert house.waiting() == ["bad", "behind it"]
    assert [word for word in broker.words if word[0] == "b"] == [f"b{n}" for n in range(5)]


class Picky(Away):
    """Says of some words that it is down, and takes all others."""

    def __init__(self, *bad: str) -> None:
        super().__init__()
        self.bad = bad

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        words = [word_of(envelope) for envelope in envelopes]
        async with self.came:
            self.words += [word for word in words if word not in self.bad]
            self.refused += [1] * len([word for word in words if word in self.bad])
            self.came.notify_all()
        return [Refused(AWAY) if word in self.bad else ACCEPTED for word in words]


@pytest.mark.parametrize("bad", [("bad",), ("bad", "bad too", "bad as well")])
@pytest.mark.databases("sqlite", "postgres18")
async def test_a_new_message_waits_for_one_pause_whatever_asked_in_vain_before_it(
    house: House, bad: tuple[str, ...]
) -> None:
    house.say(*bad)
    broker = Picky(*bad)
    pauses = Retry(max_attempts=1_000_000, initial=1.0, max_delay=5.0)
    relay = house.relay(broker, poll=0.02, outage=pauses)
    time = _with_a_clock(relay)
    async with running(relay):
        await broker.until(0, refused=1)
        for _ in range(8):  # until the pauses are long
            refused = len(broker.refused)
            time.now += 5.0
            await broker.until(0, refused=refused + 1)
        house.say("loose")
        await until(house, lambda: relay._lanes.rows == len(bad) + 1, "it is read")
        time.now += 5.0
        await broker.until(1)
    assert broker.words == ["loose"]


@pytest.mark.databases("sqlite", "postgres18")
async def test_one_for_which_alone_the_broker_is_down_makes_no_second_outage(
    house: House,
) -> None:
    house.say("bad", key="a")
    broker = Picky("bad")
    quick = Retry(max_attempts=1_000_000, initial=0.01, max_delay=0.02)
    relay = house.relay(broker, poll=0.02, outage=quick)
    async with running(relay):
        await broker.until(0, refused=3)
        house.say("first", key="b")
        await broker.until(1)
        await until(house, lambda: len(house.blocked()) == 1, "its key waits, as refused ones do")
        outages = relay.counters.outages
        house.advance(61)
        refused = len(broker.refused)
        await broker.until(1, refused=refused + 1)
        house.say("second", key="b")
        await broker.until(2)
        assert relay.counters.outages == outages
    assert house.waiting() == ["bad"]
    assert (outages, house.dead()) == (1, [])
