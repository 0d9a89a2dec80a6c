"""The process that crashes in a step: it carries the instance on until then."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from proofs.five.world import Fault, World


def main() -> None:
    """Exit code 9 (`DEAD`) when it came to its fault."""
    url, folder, told = sys.argv[1:]
    case = json.loads(told)
    fault = Fault(**case["fault"])
    world = World(
        url,
        Path(folder),
        case["plan"],
        threads=case["threads"],
        fault=fault,
        pivot=case["pivot"],
    )
    asyncio.run(world.goes_on())


if __name__ == "__main__":
    main()
