"""Proof 2.8: every public operation on messages, killed and cancelled wherever it can be.

At each point it comes to (singles), at another one of its recovery (pairs), at each suspension of
its tasks (cancel); and with bugs planted, each of which has to be caught.

Parts: `OUTBOX_SAGA_PROOF_PART="mariadb relaying"`, `"sqlite cancel"`, `"planted"`, and so on; some
operations of those: `OUTBOX_SAGA_PROOF_OPERATIONS="relay refusals:relay delayed"`. The bar is met
only by all operations of all parts.
"""

from __future__ import annotations

from proofs.crashing import Crashes
from proofs.registry import Outcome, proof
from tests.crash.operations import GROUPS
from tests.crash.planted_messages import BUGS

MESSAGES = Crashes("proofs.p2_8_message_crashes", GROUPS, BUGS, pairs=18)


@proof("2.8")
def message_crashes() -> Outcome:
    """All of it."""
    return MESSAGES.shown()


if __name__ == "__main__":
    MESSAGES.main()
