"""`outbox-saga relay`: how it ends, and which options it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("beside", [(), ("--archive-window", "3d"), ("--inbox-window", "30d")])
def test_what_ends_it_is_told_in_one_line(tmp_path: Path, beside: tuple[str, ...]) -> None:
    (tmp_path / "empty.db").touch()
    database = f"sqlite:///{tmp_path / 'empty.db'}"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "outbox_saga_relay", "relay", "--database-url", database),
            *("--broker", "nats://127.0.0.1:1", *beside),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert "outbox-saga db upgrade" in ended.stderr.splitlines()[-1]
