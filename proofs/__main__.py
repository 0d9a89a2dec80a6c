"""`python -m proofs N.M` runs one proof; `python -m proofs --list` names all of them.

Prints exactly one JSON object on standard output and exits 0 if the bar was met, 1 if not.
With `--without RULE` one rule of ours is taken out (`proofs/plants.py`), and it must exit 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from typing import Any

from proofs.registry import PROMISED, Outcome, Proof, find, modules


def run(promise: Proof) -> dict[str, Any]:
    """Show the promise: what was measured, whether the bar was met, and how long it took."""
    report: dict[str, Any] = {"proof": promise.number, "bar": promise.bar, "ok": False}
    started = time.monotonic()
    if promise.show is None:
        return report | {"measured": {}, "error": "not written"}
    try:
        outcome = promise.show()
    except Exception as error:  # noqa: BLE001 - whatever breaks a proof is a missed bar
        traceback.print_exc()
        report |= {"measured": {}, "error": f"{type(error).__name__}: {error}"}
    else:
        assert isinstance(outcome, Outcome)
        report |= {"ok": outcome.ok, "measured": outcome.measured}
    return report | {"seconds": round(time.monotonic() - started, 1)}


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="./dev prove", description="Run one proof.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("number", nargs="?", metavar="N.M", help="the proof's number")
    what.add_argument("--list", action="store_true", help="name all proofs and their bars")
    parser.add_argument(
        "--without", metavar="RULE", help="with this rule of ours taken out: it must be missed"
    )
    arguments = parser.parse_args()
    if arguments.without is not None:
        from proofs import plants

        if arguments.without not in plants.PLANTS:
            parser.error(f"no such rule; there are {list(plants.PLANTS)}")
        plants.begin(arguments.without)
    if arguments.list:
        written = modules()
        for number, bar in PROMISED.items():
            print(f"{number}  {'' if number in written else '(not written) '}{bar}")
        return 0
    try:
        promise = find(arguments.number)
    except LookupError as unknown:
        parser.error(str(unknown))
    # A proof's servers and commands may print; standard output is for one JSON object.
    report_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    report = run(promise)
    if arguments.without is not None:
        report["without"] = arguments.without
    with report_to:
        report_to.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
