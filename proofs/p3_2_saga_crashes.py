"""Proof 3.2: sagas of every kind of transition, killed, cancelled and interleaved wherever it can be.

At each point that they come to (singles), at another one of the recovery (pairs), at each
suspension of its tasks (cancel); with bugs planted, each of which has to be caught; and, on
PostgreSQL, two at a time in every order of their steps (`proofs/interleaved/saga_plays.py`).

Parts: `OUTBOX_SAGA_PROOF_PART="mariadb commanding"`, `"sqlite cancel"`, `"planted"`,
`"interleaved"`, and so on; some operations of those:
`OUTBOX_SAGA_PROOF_OPERATIONS="journey command:journey timer"`. The bar is met only by all
operations of all parts.
"""

from __future__ import annotations

from proofs.crashing import Crashes
from proofs.registry import Outcome, proof
from tests.crash.operations import SAGA_GROUPS
from tests.crash.planted_sagas import SAGA_BUGS

SAGAS = Crashes("proofs.p3_2_saga_crashes", SAGA_GROUPS, SAGA_BUGS, pairs=21)


@proof("3.2")
def saga_crashes() -> Outcome:
    """All of it."""
    return SAGAS.shown()


if __name__ == "__main__":
    SAGAS.main()
