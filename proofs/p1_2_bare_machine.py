"""Proof 1.2: `./dev demo` and `./dev test` on a Debian with Python, pip and certificates only.

The machine is a folder made by debootstrap, entered by chroot in mount and process namespaces of
its own: when the command ends, so has every process and mount of it, whatever went wrong. Needs
root on a Debian; debootstrap itself is installed if it is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from proofs.registry import Outcome, proof, say

CHECKOUT = Path(__file__).resolve().parents[1]
SUITE = "bookworm"
INCLUDED = "python3,python3-pip,ca-certificates"

# How this machine reaches the world, and nothing else of its environment.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "UV_DEFAULT_INDEX")
PIP_SETTINGS = ("global.index-url", "global.proxy", "global.trusted-host")
ABSENT = ("git", "make", "uv", "pipx", "docker", "gcc", "psql", "nats-server")


@proof("1.2")
def bare_machine() -> Outcome:
    """Make the machine, run both commands in it as root, and the demo as an ordinary user."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise PermissionError("a machine is made by debootstrap and chroot, which need root")
    if shutil.which("debootstrap") is None:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(["apt-get", "-qq", "install", "-y", "debootstrap"], check=True)
    with tempfile.TemporaryDirectory(
        prefix="outbox-saga-machine-", ignore_cleanup_errors=True
    ) as folder:
        machine = Machine(Path(folder))
        machine.make()
        present = [tool for tool in ABSENT if machine.run(f"command -v {tool}").returncode == 0]
        runs = {
            "demo": machine.timed("./dev demo --json"),
            "demo_again": machine.timed("./dev demo --json"),
            "test": machine.timed("./dev test --require-services -q"),
            "demo_as_ordinary_user": machine.timed("./dev demo --json", user=1000),
        }
    return Outcome(
        ok=not present and all(run["exit"] == 0 for run in runs.values()),
        measured={
            "machine": {
                "suite": SUITE,
                "included": INCLUDED,
                "python": machine.python,
                "looked_for_and_absent": [tool for tool in ABSENT if tool not in present],
                "present": present,
            },
            "runs": runs,
        },
    )


class Machine:
    """A bare Debian in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = ""
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        }

    def make(self) -> None:
        """Install it, tell it how this machine reaches its package mirrors, bring the checkout."""
        say(f"debootstrap {SUITE} with {INCLUDED}")
        command = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", SUITE]
        command += [str(self.root), *debian_mirror()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"debootstrap ended with {done.returncode}:\n{done.stdout[-2000:]}")
        self._copy_network_settings()
        self.run("useradd --uid 1000 --home-dir /srv/1000 --no-create-home person", check=True)
        self._copy_checkout()
        self.python = self.run("python3 --version").stdout.strip()

    def _copy_network_settings(self) -> None:
        self.root.chmod(0o755)  # the temporary folder's own mode would lock ordinary users out
        for name in (
            "etc/resolv.conf",
            "etc/hosts",
            "etc/apt/sources.list",
            "etc/apt/sources.list.d",
            "etc/apt/apt.conf.d",
            "etc/apt/auth.conf.d",
            "etc/apt/keyrings",
            "usr/local/share/ca-certificates",
        ):
            source, target = Path("/", name), self.root / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
            elif source.exists():
                target.unlink(missing_ok=True)
                shutil.copy(source, target)
            elif name == "etc/apt/sources.list":
                target.unlink(missing_ok=True)  # debootstrap's, which sources.list.d replaces
        (self.root / "etc/pip.conf").write_text(pip_settings())
        self.run("update-ca-certificates", check=True)

    def _copy_checkout(self) -> None:
        """What git would give to someone who clones: the machine has no git to do it with."""
        archive = subprocess.run(
            ["git", "archive", "--format=tar", "HEAD"],
            cwd=CHECKOUT,
            capture_output=True,
            check=True,
        )
        for user in (0, 1000):
            home = self.root / self.home(user).lstrip("/")
            home.mkdir(parents=True)
            subprocess.run(["tar", "-x", "-C", str(home)], input=archive.stdout, check=True)
            self.run(f"chown -R {user}:{user} /srv/{user}", check=True)

    @staticmethod
    def home(user: int) -> str:
        """Where that user has the checkout."""
        return f"/srv/{user}/outbox-saga"

    def run(
        self, command: str, *, user: int = 0, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the machine, in namespaces that end with it."""
        enter = (
            'mount --rbind /dev "$1/dev" && exec chroot --userspec="$2:$2" --groups= "$1" '
            'env -i HOME="/srv/$2" "${@:4}" sh -c "cd /srv/$2/outbox-saga 2>/dev/null; $3"'
        )
        done = subprocess.run(
            [
                *("unshare", "--mount", "--propagation=private", "--pid", "--fork"),
                *("--kill-child", f"--mount-proc={self.root / 'proc'}"),
                *("bash", "-c", enter, "enter", str(self.root), str(user), command),
                *(f"{name}={value}" for name, value in self.environment.items()),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr}")
        return done

    def timed(self, command: str, *, user: int = 0) -> dict[str, Any]:
        """Run one of our commands and note what it says at its end."""
        say(f"{command}{' as an ordinary user' if user else ''}")
        started = time.monotonic()
        done = self.run(command, user=user)
        seconds = round(time.monotonic() - started, 1)
        say(f"  {seconds} s, exit {done.returncode}")
        lines = done.stdout.strip().splitlines()
        found: dict[str, Any] = {"exit": done.returncode, "seconds": seconds}
        if done.returncode:
            say(done.stdout[-6000:] + done.stderr[-6000:])
            found["end"] = (done.stdout + done.stderr).strip().splitlines()[-15:]
        elif "--json" in command:
            found["said"] = json.loads(done.stdout[done.stdout.index("{") :])
        else:
            found["said"] = lines[-1] if lines else ""
        return found


def debian_mirror() -> list[str]:
    """The mirror this machine is configured for, if its configuration names one."""
    configuration = [Path("/etc/apt/sources.list")]
    configuration += sorted(Path("/etc/apt/sources.list.d").iterdir())
    for file in configuration:
        if file.suffix in {".list", ".sources"} and file.exists():
            pattern = r"^(?:URIs:|deb(?:\s+\[.*?\])?)\s*(\S+/debian)/?(?:\s|$)"
            if found := re.search(pattern, file.read_text(), re.MULTILINE):
                return [found[1]]
    return []


def pip_settings() -> str:
    """How this machine's pip reaches its index."""
    lines = ["[global]"]
    for setting in PIP_SETTINGS:
        asked = subprocess.run(
            [f"{sys.base_prefix}/bin/python3", "-m", "pip", "config", "get", setting],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0:
            lines.append(f"{setting.partition('.')[2]} = {asked.stdout.strip()}")
    return "\n".join(lines) + "\n"
