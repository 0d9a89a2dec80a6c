"""What the documentation promises of a relay whose broker is away and comes back, as numbers.

`docs/operations.md`, "An outage of the broker": one message at a time asks, with pauses that grow;
then 100 messages a second at first, a thousandfold in as long as the outage lasted, 10 s at most;
what is on its way grows by doubling; and `--max-rate` bounds it always.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from outbox_saga_relay.rate import BURST, FIRST, LAST, LONGEST
from outbox_saga_relay.relay import OUTAGE_RETRY
from proofs.outages.wire import Wire

TOGETHER = 0.05  # seconds: connections that follow each other so closely are one probe's
PER_PROBE = 2  # connections: the client tries a server twice at most
EARLY = 0.01  # seconds a timer may be early by another process's clock
LATE = 0.25  # seconds that messages may have stood still on their way, and then come together
WINDOW, STEP = 1.0, 0.1  # seconds: of a stretch of time that is counted, and between two of them
SHOWN = 15  # seconds of which the counts are told


@dataclass(frozen=True)
class Found:
    """What was seen."""

    measured: dict[str, Any]
    violations: list[str] = field(default_factory=list)


def probes(wire: Wire, owner: str, down_at: float, up_at: float) -> Found:
    """How the relay asked while nobody was there.

    Args:
        owner: The relay's id, from which its jitter comes.
    """
    tried = [c for c in wire.connections if down_at <= c.began < up_at and not c.reached]
    wrong = []
    if any(later.began < earlier.ended for earlier, later in pairwise(tried)):
        wrong.append("two connections were tried at once")
    asked: list[list[Any]] = []
    for connection in tried:
        if asked and connection.began - asked[-1][-1].ended < TOGETHER:
            asked[-1].append(connection)
        else:
            asked.append([connection])
    if too_many := [len(probe) for probe in asked if len(probe) > PER_PROBE]:
        wrong.append(f"one probe made {max(too_many)} connections")
    pauses = [later[0].began - earlier[-1].ended for earlier, later in pairwise(asked)]
    by_count = [_too_short(pauses, owner, failed) for failed in (1, 2)]
    wrong += by_count[0] and by_count[1]
    sent = [s for s in wire.sent if down_at <= s.at < up_at]
    if sent:
        wrong.append(f"{len(sent)} messages were sent to nobody")
    return Found(
        {
            "probes": len(asked),
            "connections": len(tried),
            "connections_in_a_second_at_most": _most([c.began for c in tried], 1.0),
            "pauses_seconds": {
                "first": [round(pause, 2) for pause in pauses[:6]],
                "longest": round(max(pauses, default=0.0), 2),
            },
        },
        wrong,
    )


def _too_short(pauses: list[float], owner: str, failed: int) -> list[str]:
    """Pauses between probes that were shorter than the policy says, the first of them after so
    many failures: a connection that was lost with messages on their way is one, too.
    """
    wrong = []
    for number, pause in enumerate(pauses, failed):
        said = OUTAGE_RETRY.delay(number, seed=owner)
        if pause < said - EARLY:
            wrong.append(f"pause {number} was {pause:.3f} s, and should be {said:.3f} s")
    return wrong


def rates(wire: Wire, down_at: float, up_at: float, most: float | None) -> Found:
    """How messages came when the server was there again, and, if `most` is given, before."""
    limit = math.inf if most is None else most
    before = [s.at for s in wire.sent if s.at < down_at]
    sent = [s for s in wire.sent if s.at >= up_at]
    acknowledged = [at for at in wire.acknowledged if at >= up_at]
    made = [c for c in wire.connections if c.began >= up_at and c.reached]
    if not acknowledged:
        return Found({}, ["nothing was acknowledged any more"])
    wrong = []
    if len(made) != 1:
        wrong.append(f"{len(made)} connections were made to the server that was back")
    first, ever = acknowledged[0], len(wire.acknowledged) - len(acknowledged)
    alone = [s for s in sent if s.at < first]
    if any(s.flying > 1 for s in alone):
        wrong.append("more than one message asked before the first was acknowledged")
    if beyond := [s for s in sent if s.flying > 1 + s.acknowledged - ever]:
        wrong.append(f"{len(beyond)} messages went before so many were acknowledged")
    length = min(up_at - down_at, LONGEST)

    def rate(at: float) -> float:
        passed = max(0.0, at - first)
        ramp = FIRST * (LAST / FIRST) ** (passed / length) if passed < length else math.inf
        return min(limit, ramp)

    wrong += _above([s.at for s in sent], rate)
    wrong += _above(before, lambda _: limit)
    moments = [s.at for s in sent]
    seconds = []
    for number in range(SHOWN):
        begin, end = first + number, first + number + 1
        allowed = rate(end) * (1 + BURST)
        count = _between(moments, begin, end)
        seconds.append({"sent": count, "allowed": None if math.isinf(allowed) else int(allowed)})
        if moments[-1] < end:
            break
    return Found(
        {
            "first_acknowledged_after_seconds": round(first - up_at, 2),
            "asked_alone": len(alone),
            "connections": len(made),
            "by_second": seconds,
            "sent_in_a_second_at_most": _most(moments, 1.0),
            "on_their_way_at_most": max(s.flying for s in sent),
        },
        wrong,
    )


def _above(moments: list[float], rate: Any) -> list[str]:
    """Stretches of time in which more was sent than the rate at their end allows."""
    if not moments:
        return []
    wrong = []
    end = moments[0] + STEP
    while end < moments[-1] + WINDOW:
        count = _between(moments, end - WINDOW, end)
        allowed = rate(end) * (WINDOW + BURST + LATE) + 1
        if count > allowed:
            wrong.append(f"{count} messages in a second, and {allowed:.0f} were allowed")
        end += STEP
    return wrong


def _between(moments: list[float], begin: float, end: float) -> int:
    return bisect.bisect_left(moments, end) - bisect.bisect_left(moments, begin)


def _most(moments: list[float], length: float) -> int:
    return max((_between(moments, at, at + length) for at in moments), default=0)
