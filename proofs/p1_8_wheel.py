"""Proof 1.8: what the wheel installs, and what importing the library costs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from proofs.registry import Outcome, proof, say
from tests.packaging.wheel import EVERY_NAME, NOT_LOADED, PAID_ANYWAY, Installation, build


@proof("1.8")
def wheel() -> Outcome:
    """Build it, install it where nothing else is, look, and time the import."""
    with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
        say("building the wheel and installing it in an empty environment")
        built = build(Path(folder, "dist"))
        installed = Installation(Path(folder, "env"), built)
        packages = sorted({f.partition("/")[0] for f in installed.files() if f.endswith(".py")})
        loaded = sorted(installed.loaded(EVERY_NAME).intersection(NOT_LOADED))
        say("timing imports")
        codes = (PAID_ANYWAY, "import outbox_saga", EVERY_NAME)
        seconds = dict(zip(codes, installed.import_times(*codes, rounds=25), strict=True))
    ratios = {code: seconds[code] / seconds[PAID_ANYWAY] for code in codes}
    return Outcome(
        ok=packages == ["outbox_saga", "outbox_saga_migrations", "outbox_saga_relay"]
        and ratios["import outbox_saga"] < 1.5
        and not loaded,
        measured={
            "wheel": built.name,
            "packages": packages,
            "median_seconds": {code: round(value, 4) for code, value in seconds.items()},
            "ratios": {code: round(value, 3) for code, value in ratios.items()},
            "loaded_that_must_not_be": loaded,
        },
    )
