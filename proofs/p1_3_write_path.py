"""Proof 1.3: the write path's schedules and refusals, on both lines of SQLAlchemy.

Each line gets an environment of its own under .dev/, as `./dev test` would make it, with the
lowest SQLAlchemy that we accept and with the newest there is. In each, `tests/write_path` runs on
PostgreSQL 18, MariaDB and SQLite; one skipped test is a missed bar, as one failed test is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from proofs.registry import Outcome, proof, say

CHECKOUT = Path(__file__).resolve().parents[1]
LOCAL = CHECKOUT / ".dev"
DATABASES = ("sqlite", "postgres18", "mariadb")
# The bar's schedules and refusals -> the files that show them.
SHOWN_BY = {
    "nested savepoints": "test_savepoints",
    "random programs": "test_random_programs",
    "flush and commit hooks": "test_hooks",
    "join modes": "test_join_modes",
    "AUTOCOMMIT": "test_autocommit",
    "two-phase": "test_twophase",
    "several engines": "test_engines",
    "ends of transactions": "test_ends",
    "frameworks' sessions": "test_other_sessions",
    "private names": "test_private_names",
    "refusals": "test_refusals",
    "what passes arrives": "test_bytes_arrive",
    "interleavings": "test_interleavings",
}


@proof("1.3")
def write_path() -> Outcome:
    """Run the same tests on both lines and compare what ran."""
    lowest = lowest_sqlalchemy()
    lines = {
        "lowest": run_line(f"sqlalchemy-{lowest}", f"sqlalchemy=={lowest}"),
        "newest": run_line("sqlalchemy-newest", "sqlalchemy>=2.1,<2.2"),
    }
    ran = [line.pop("ran") for line in lines.values()]
    ok = (
        all(line["exit"] == 0 for line in lines.values())
        and all(not line[bad] for line in lines.values() for bad in ("failed", "skipped"))
        and all(all(line["passed"].values()) for line in lines.values())
        and ran[0] == ran[1]
        and lines["lowest"]["sqlalchemy"] == lowest
        and lines["newest"]["sqlalchemy"].startswith("2.1.")
    )
    return Outcome(ok=ok, measured={"databases": DATABASES, "lines": lines})


def lowest_sqlalchemy() -> str:
    """The version from which on pyproject.toml takes SQLAlchemy."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    found = [re.fullmatch(r"sqlalchemy\[.*\]>=([\d.]+)", one) for one in project["dependencies"]]
    (lowest,) = [match[1] for match in found if match]
    return lowest


def run_line(name: str, requirement: str) -> dict[str, Any]:
    """The tests in an environment with that SQLAlchemy: versions, counts, and what ran."""
    environment = LOCAL / "proofs" / name
    python = environment / "bin" / "python"
    settings = dict(os.environ, UV_PROJECT_ENVIRONMENT=str(environment))
    settings.pop("VIRTUAL_ENV", None)
    uv = os.environ.get("UV") or shutil.which("uv") or str(LOCAL / "uv" / "bin" / "uv")
    say(f"{name}: making its environment")
    made = ("sync", "--frozen", "--all-extras", "--no-default-groups", "--group", "test")
    run([uv, *made, "--quiet"], settings)
    run([uv, "pip", "install", "--quiet", "--python", str(python), "-U", requirement], settings)
    version = run([str(python), "-c", "import sqlalchemy as s; print(s.__version__)"], settings)
    report = environment / "write_path.xml"
    report.unlink(missing_ok=True)
    tests = [str(python), "-m", "pytest", "tests/write_path", "--require-services", "-q"]
    tests += ["-k", "not postgres15", "-n", "2", f"--junitxml={report}"]
    tests += ["-o", f"cache_dir={environment / 'pytest'}"]
    say(f"{name}: {' '.join(tests[1:])}")
    started = time.monotonic()
    done = subprocess.run(
        tests, cwd=CHECKOUT, env=settings, capture_output=True, text=True, check=False
    )
    say(f"{name}: {done.stdout.splitlines()[-1] if done.stdout else done.stderr[-2000:]}")
    if done.returncode:
        say(done.stdout[-8000:])
    return {
        "sqlalchemy": version.strip(),
        "exit": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        **counts(report),
    }


def run(command: list[str], settings: dict[str, str]) -> str:
    """The output of a command that must not fail."""
    return subprocess.run(
        command, cwd=CHECKOUT, env=settings, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def counts(report: Path) -> dict[str, Any]:
    """Passed by what they show, by database; failed and skipped by name."""
    cases = list(ET.parse(report).iter("testcase"))
    bad = {
        kind: [f"{case.get('classname')}::{case.get('name')}" for case in cases if has(case, kind)]
        for kind in ("failure", "error", "skipped")
    }
    files = Counter((case.get("classname") or "").rpartition(".")[2] for case in cases)
    names = [case.get("name") or "" for case in cases]
    return {
        "tests": len(cases),
        "failed": bad["failure"] + bad["error"],
        "skipped": bad["skipped"],
        "passed": {what: files[file] for what, file in SHOWN_BY.items()},
        "by_database": {one: sum(one in name for name in names) for one in DATABASES},
        "ran": sorted(f"{case.get('classname')}::{case.get('name')}" for case in cases),
    }


def has(case: ET.Element, kind: str) -> bool:
    """Whether the report says so of this test."""
    return case.find(kind) is not None
