"""What was published but not yet written, and the moment it is written."""

from outbox_saga.pending import endings as endings  # its hooks, and those of `writing`
from outbox_saga.pending import refused as refused  # and its hooks
from outbox_saga.pending.keepers import Write, Written, connections_of
from outbox_saga.pending.taking_in import keep_with_connection, keep_with_session
from outbox_saga.pending.writing import what_was_written

__all__ = [
    "Write",
    "Written",
    "connections_of",
    "keep_with_connection",
    "keep_with_session",
    "what_was_written",
]
