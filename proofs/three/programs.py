"""What each process of proof 3.5 runs: `outbox-saga` as an operator starts it, or a placer."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

from outbox_saga_relay.cli import main as program


def run(words: Sequence[str], env: Mapping[str, str]) -> None:
    """The process.

    Args:
        words: `place COUNT SEED`, or the arguments of `outbox-saga`.
        env: What it finds in its environment; the services' modules read it.
    """
    os.environ.update(env)
    if words[0] == "place":
        from proofs.three import placer

        asyncio.run(placer.main(int(words[1]), words[2]))
        return
    sys.argv = ["outbox-saga", *words]
    program()
