"""How long things may take, in seconds: short, since what a killed process held is waited for.

A lease is never shorter than the longest step may take, plus a second: the timeout of every step,
local ones too, says how soon a killed orchestrator is replaced.
"""

from __future__ import annotations

from outbox_saga.retries import Retry

# the shop gives up waiting for an answer of the provider, and asks again under the same key
ANSWER_WITHIN = 1.0
# by which the provider's late answers are late
LATE_BY = 1.3
STEP_TIMEOUT = 2.0
LEASE = STEP_TIMEOUT + 1.0
SOON = Retry(max_attempts=8, initial=0.1, max_delay=1.0)
