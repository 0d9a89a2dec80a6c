"""What the guide shows is run, and what it says of the commands is what they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from outbox_saga_migrations import upgrade
from outbox_saga_relay.cli import main

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "dead-letters.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)


async def test_the_program_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = sa.create_engine("sqlite:///shop.db", poolclass=sa.NullPool)
    with engine.begin() as connection:
        upgrade(connection)
    (program,) = (text for language, text in BLOCKS if language == "python")
    names: dict[str, Any] = {}
    exec(compile(program, str(GUIDE), "exec"), names)
    the_same = names["the_same"]
    await the_same()
    database = names["database"]
    await database.close()


@pytest.mark.parametrize(
    "line",
    [
        line.split("#")[0].strip()
        for language, text in BLOCKS
        if language == "sh"
        for line in text.splitlines()
        if line.startswith("outbox-saga")
    ],
)
def test_every_option_of_the_guide_is_an_option(line: str) -> None:
    command, *words = shlex.split(line)
    asked = CliRunner().invoke(main, [*[w for w in words[:2] if w != "list"], "--help"])
    options = [word for word in words if word.startswith("--")]
    if "list" in words:
        asked = CliRunner().invoke(main, ["dead-letter", "list", "--help"])
    assert (command, asked.exit_code) == ("outbox-saga", 0), asked.output
    assert [option for option in options if option not in asked.output] == []
