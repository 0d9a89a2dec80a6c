"""SQLite: a file as our programs open it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import CannotLook, Check, Found

_OLDEST = (3, 35)
_SHORT_WAIT = 5000  # milliseconds
MOUNTS = Path("/proc/self/mounts")
# Of which SQLite's authors say that locks there are not to be trusted, and whose memory two
# machines do not share, as WAL needs it
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|gfs2?|ocfs2|glusterfs|lustre|beegfs|virtiofs"
    r"|fuse\.(?!fuseblk|ext|ntfs|lxcfs|overlay).*"
)
_FULL = 2


def version(case: DatabaseCase) -> Iterator[Found]:
    """The version knows our statements."""
    if case.version < _OLDEST:
        yield Found(
            "error",
            f"SQLite {'.'.join(map(str, case.version))} is older than 3.35",
            "use a Python that brings a newer SQLite",
        )


def journal(case: DatabaseCase) -> Iterator[Found]:
    """Readers and the writer do not wait for each other."""
    mode = case.scalar("PRAGMA journal_mode")
    if mode != "wal":
        yield Found(
            "error",
            f"journal_mode is {mode}, though our programs ask for WAL",
            "look for code of yours that sets it on every connection; the file must lie on a "
            "local disk",
        )


def synchronous(case: DatabaseCase) -> Iterator[Found]:
    """COMMIT waits for the log to be on disk."""
    level = int(case.scalar("PRAGMA synchronous"))
    if level < _FULL:
        yield Found(
            "error",
            f"synchronous is {('OFF', 'NORMAL')[level]} on connections of this process",
            "look for code of yours that sets it on every connection, and leave it at FULL",
        )


def busy_timeout(case: DatabaseCase) -> Iterator[Found]:
    """A writer waits for another one."""
    waits = int(case.scalar("PRAGMA busy_timeout"))
    if waits < _SHORT_WAIT:
        yield Found(
            "warning",
            f"busy_timeout is {waits} ms: writers that meet fail with 'database is locked'",
            "look for code of yours that sets it on every connection; 30000 is ours",
        )


def place(case: DatabaseCase) -> Iterator[Found]:
    """The file lies on a disk of this machine."""
    file = case.scalar("SELECT file FROM pragma_database_list WHERE name = 'main'")
    try:
        mounts = MOUNTS.read_text()
    except OSError:
        raise CannotLook(
            f"{sys.platform} does not say on which file system a file lies",
            "see to it that the file lies on a local disk",
        ) from None
    kind = file_system(Path(file), mounts)
    if _NETWORK.fullmatch(kind):
        yield Found(
            "error",
            f"the file lies on {kind}, a network file system",
            "put it on a local disk; use PostgreSQL or MariaDB where several machines need it",
        )


def file_system(file: Path, mounts: str) -> str:
    """The type of the file system the file lies on, as /proc/self/mounts tells it."""
    found, depth = "", -1
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        # a space stands there as \040
        where = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), point))
        # of two at one place the later one is on top
        if file.is_relative_to(where) and len(where.parts) >= depth:
            found, depth = kind, len(where.parts)
    return found


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "sqlite.version",
        "the library's version",
        "An older one does not know our statements.",
        ("error",),
        version,
    ),
    Check(
        "sqlite.journal",
        "`journal_mode`, as our programs open the file",
        "Without WAL readers and the writer lock each other out.",
        ("error",),
        journal,
    ),
    Check(
        "sqlite.synchronous",
        "`synchronous`, as our programs open the file",
        "A power failure loses commits whose messages are already published.",
        ("error",),
        synchronous,
    ),
    Check(
        "sqlite.busy_timeout",
        "`busy_timeout`, as our programs open the file",
        "Writers that meet fail.",
        ("warning",),
        busy_timeout,
    ),
    Check(
        "sqlite.place",
        "the file system the file lies on (Linux only)",
        "Over a network, locks do not hold: the file is destroyed.",
        ("error",),
        place,
    ),
)
