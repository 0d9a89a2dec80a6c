"""Proof 2.10: the acceptance scenarios, each a module `proofs/scenes/sNN_<what>.py`.

`OUTBOX_SAGA_PROOF_PART` names one of them (`01` is enough). A scenario without a module is
missing, and a missing one is a missed bar, as is one that raises.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
import traceback
from typing import Any

from proofs import scenes
from proofs.registry import Outcome, parts, proof, say

SCENARIOS = {
    1: "rollback",
    2: "savepoints",
    3: "misuse",
    4: "cancel at each await",
    6: "ack lost",
    7: "two relays, order",
    8: "late committer",
    9: "foreign long transaction",
    10: "zombie",
    11: "broker down",
    12: "oversize",
    13: "hostile JSON",
    15: "bad stream configuration",
    16: "lost wake-up",
    17: "pgbouncer",
    18: "transient errors",
    19: "MariaDB producers",
    20: "SQLite",
    28: "SIGTERM",
}
_MODULE = re.compile(r"s(\d+)_\w+")


@proof("2.10")
def scenarios() -> Outcome:
    """Each scenario's own figures, and whether it was met."""
    names = {f"{number:02} {title}": number for number, title in SCENARIOS.items()}
    wanted = parts(names)
    found = modules()
    measured: dict[str, Any] = {
        "missing": [name for name, number in names.items() if number not in found]
    }
    good = not measured["missing"]
    for name in wanted:
        module = found.get(names[name])
        measured[name] = played(name, module) if module else {"ok": False, "error": "not written"}
        good = good and measured[name]["ok"]
    missed = [name for name in wanted if not measured[name]["ok"]]
    measured["counted"] = {"green": len(wanted) - len(missed), "of": len(names), "missed": missed}
    return Outcome(good and len(wanted) == len(names), measured)


def modules() -> dict[int, str]:
    """The module of each scenario that has one, by the pattern of its name."""
    found: dict[int, str] = {}
    for module in pkgutil.iter_modules(scenes.__path__):
        if name := _MODULE.fullmatch(module.name):
            number = int(name[1])
            if number not in SCENARIOS or number in found:
                raise LookupError(f"{module.name}: no scenario of that number, or two modules")
            found[number] = f"{scenes.__name__}.{module.name}"
    return found


def played(name: str, module: str) -> dict[str, Any]:
    """What one scenario found; whatever breaks it is a missed bar, and the others go on."""
    started = time.monotonic()
    say(f"{name}: begins")
    try:
        outcome = importlib.import_module(module).show()
    except Exception as error:  # noqa: BLE001 - as `python -m proofs` does for a whole proof
        traceback.print_exc()
        told: dict[str, Any] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    else:
        assert isinstance(outcome, Outcome)
        told = {"ok": outcome.ok, **outcome.measured}
    told["seconds"] = round(time.monotonic() - started, 1)
    say(f"{name}: {told}")
    return told
