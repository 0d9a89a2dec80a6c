"""Every database: its clock against this machine's."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from typing import Final

from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import Check, Found
from outbox_saga_relay.times import spoken


def skew(case: DatabaseCase) -> Iterator[Found]:
    """This machine's clock and the database's agree."""
    asked, begun = dt.datetime.now(dt.UTC), time.monotonic()
    there = case.database.clock.read(case.connection)
    took = time.monotonic() - begun
    # it was read at some moment of the round trip, nobody knows at which
    apart = (there - asked).total_seconds() - took / 2
    if abs(apart) - took / 2 >= case.limits.skew:
        yield Found(
            "warning",
            f"the database's clock is {spoken(abs(apart))} "
            f"{'ahead of' if apart > 0 else 'behind'} this machine's",
            "let both machines take their time from the same place (NTP)",
        )


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "database.clock",
        "this machine's clock against the database's",
        "Our programs go by the database's clock; ids, logs and your own times go by this one, "
        "and do not fit together.",
        ("warning",),
        skew,
    ),
)
