"""Proof 1.8: what the wheel installs, and what importing the library costs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from proofs.registry import Outcome, proof, say
from tests.packaging.wheel import NOT_LOADED, PAID_ANYWAY, Installation, build


@proof("1.8")
def wheel() -> Outcome:
    """Build it, install it where nothing else is, look, and time the import."""
    with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
        say("building the wheel and installing it in an empty environment")
        built = build(Path(folder, "dist"))
        installed = Installation(Path(folder, "env"), built)
        packages = sorted({f.partition("/")[0] for f in installed.files() if f.endswith(".py")})
        loaded = sorted(installed.loaded("import outbox_saga").intersection(NOT_LOADED))
        say("timing imports")
        paid_anyway, ours = installed.import_times(PAID_ANYWAY, "import outbox_saga", rounds=25)
    ratio = ours / paid_anyway
    return Outcome(
        ok=packages == ["outbox_saga", "outbox_saga_migrations", "outbox_saga_relay"]
        and ratio < 1.5
        and not loaded,
        measured={
            "wheel": built.name,
            "packages": packages,
            "import_seconds": {PAID_ANYWAY: round(paid_anyway, 4), "outbox_saga": round(ours, 4)},
            "import_ratio": round(ratio, 3),
            "loaded_that_must_not_be": loaded,
        },
    )
