"""`python -m outbox_saga_relay` is `outbox-saga`."""

from outbox_saga_relay.cli import main

main(prog_name="outbox-saga")
