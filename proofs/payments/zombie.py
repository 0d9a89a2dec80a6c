"""A process that stands still when it is about to call the provider, and then calls it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import cast

from outbox_saga.saga.recording import Recording
from proofs.payments.paying import Mode, Paying


def main() -> None:
    """Carries on what is due, once."""
    if "OUTBOX_SAGA_PROOF_FORGETS" in os.environ:
        # a rule taken out: as if whoever lost an instance told nobody of what it has done
        setattr(Recording, "record_late", lambda *_: None)  # noqa: B010
    url, folder, mode, threads = sys.argv[1:]
    paying = Paying(url, Path(folder), cast("Mode", mode), threads=threads == "def", stops=True)
    asyncio.run(paying.carry_on())


if __name__ == "__main__":
    main()
