"""An environment a peer under `.dev/peers`, made once, by uv or by pip, with pinned versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from benchmarks.measuring import say

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".dev" / "peers"
_ASK = "import sys; print(sys.executable, sys.version_info[0], sys.version_info[1])"


class Peer(Protocol):
    """What of a peer an environment is made of."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def packages(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def python(self) -> tuple[int, int]: ...  # noqa: D102


class PeerUnavailable(Exception):
    """It cannot be had on this machine; says why."""


def python_of(peer: Peer) -> Path:
    """The interpreter of the peer's environment, which is made if it is not there."""
    place = PEERS / peer.name
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    made = place / "made-of"
    wanted = "\n".join(peer.packages)
    if made.exists() and made.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    say(f"peers: making an environment for {peer.name}")
    shutil.rmtree(place, ignore_errors=True)
    PEERS.mkdir(parents=True, exist_ok=True)
    base = _python_at_least(peer.python)
    if uv := os.environ.get("UV") or shutil.which("uv") or _fetched_uv():
        _run(uv, "venv", "--quiet", "--python", base, str(place))
        _run(uv, "pip", "install", "--quiet", "--python", str(python), *peer.packages)
    else:
        _run(base, "-m", "venv", str(place))
        _run(str(python), "-m", "pip", "install", "--quiet", *peer.packages)
    made.write_text(wanted, encoding="utf-8")
    return python


def _fetched_uv() -> str | None:
    fetched = ROOT / ".dev" / "uv" / "bin" / "uv"
    return str(fetched) if fetched.exists() else None


def _python_at_least(least: tuple[int, int]) -> str:
    """The first interpreter here that is new enough; ours, if it is."""
    for candidate in _candidates():
        asked = subprocess.run(
            [candidate, "-c", _ASK], capture_output=True, text=True, check=False
        )
        if asked.returncode:
            continue  # as a shim does whose version is not chosen
        executable, major, minor = asked.stdout.rsplit(maxsplit=2)
        if (int(major), int(minor)) >= least:
            return executable
    raise PeerUnavailable(f"needs Python {least[0]}.{least[1]}, and there is none here")


def _candidates() -> Iterator[str]:
    yield sys.executable
    for minor in (12, 13, 14):
        if found := shutil.which(f"python3.{minor}"):
            yield found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    if versions.is_dir():
        yield from map(str, sorted(versions.glob("3.*/bin/python3")))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerUnavailable(f"{command[0]}: {done.stderr.strip()[-300:]}")
