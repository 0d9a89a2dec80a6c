"""Temporary files are in memory only where that has plenty of room for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox_saga.testing.servers import memory
from outbox_saga.testing.servers.memory import ROOM, folder_in_memory


@pytest.fixture
def roomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the one in memory, on a machine that has enough."""
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(memory, "_TMPFS", tmp_path)
    monkeypatch.setattr(memory, "ROOM", 1)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "nowhere")
    return tmp_path


def test_they_are_there_where_it_has_room(roomy: Path) -> None:
    assert folder_in_memory() == roomy


def test_whoever_says_where_temporary_files_go_is_heeded(
    roomy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(roomy))
    assert folder_in_memory() is None


def test_without_such_a_folder_they_are_where_they_usually_are(
    roomy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_TMPFS", roomy / "nowhere")
    assert folder_in_memory() is None


@pytest.mark.parametrize(("limit", "enough"), [("max", True), (str(ROOM), False)])
def test_what_is_left_to_a_container_counts(
    roomy: Path, monkeypatch: pytest.MonkeyPatch, limit: str, enough: bool
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", roomy)
    (roomy / "memory.max").write_text(f"{limit}\n")
    (roomy / "memory.current").write_text(f"{ROOM}\n")
    assert folder_in_memory() == (roomy if enough else None)
