"""The logs of the programs, on standard error."""

from __future__ import annotations

import logging
import sys


def log_to_stderr(level: str) -> None:
    """Ours from this level on, those of others from WARNING on.

    Drivers and clients tell at DEBUG what goes through them: aiosqlite the parameters of every
    statement, which are payloads. A service that wants more of its own sets its loggers' level.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("outbox_saga").setLevel(level.upper())
