"""Python imports this when it begins: the rule is taken out of a proof's processes, too.

Its folder stands in PYTHONPATH while a proof runs with `--without`, and only then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from proofs import plants  # it is found only now

plants.take_out(os.environ[plants.RULE])
