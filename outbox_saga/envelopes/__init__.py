"""A message with everything it needs on the way, how it becomes that, and what is refused."""

from outbox_saga.envelopes.envelope import Envelope, replayed, replays_of
from outbox_saga.envelopes.header_rules import MAX_HEADERS, MAX_KEY, check_key, check_line
from outbox_saga.envelopes.sealing import MAX_BODY, seal, seal_body

__all__ = [
    "MAX_BODY",
    "MAX_HEADERS",
    "MAX_KEY",
    "Envelope",
    "check_key",
    "check_line",
    "replayed",
    "replays_of",
    "seal",
    "seal_body",
]
