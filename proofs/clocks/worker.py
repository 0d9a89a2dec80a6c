"""An orchestrator that goes on until it is ended; whoever starts it gives it its clock."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
import time
from dataclasses import replace
from typing import Any

from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Surroundings
from proofs.clocks.waiting import service


def main() -> None:
    """Prints what this process takes for the time, then carries sagas on."""
    print(time.time(), flush=True)
    if "OUTBOX_SAGA_PROOF_OWN_CLOCK" in os.environ:
        setattr(Hand, "surroundings", _by_its_own_clock)  # noqa: B010  # the rule taken out
    asyncio.run(_carry_on(sys.argv[1]))


def _by_its_own_clock(hand: Hand, reporting: Any) -> Surroundings:
    return replace(_OURS(hand, reporting), now=dt.datetime.now(dt.UTC))


_OURS = Hand.surroundings


async def _carry_on(url: str) -> None:
    orchestrator = service(url).orchestrator(lease=3.0)
    await orchestrator.run(asyncio.Event())


if __name__ == "__main__":
    main()
