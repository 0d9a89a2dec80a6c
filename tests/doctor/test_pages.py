"""The guides say what the registry and the SQL say; a failure prints what to put there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from outbox_saga.tables import PREFIX
from outbox_saga_relay.doctor import SUBJECTS
from outbox_saga_relay.doctor.findings import LEVELS
from outbox_saga_relay.roles import ROLES, rights_of
from outbox_saga_relay.roles.rights import VERBS, every_column

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def checks_as_markdown() -> str:
    parts = []
    for subject, checks in SUBJECTS.items():
        rows = [
            f"| `{check.id}` | {', '.join(check.levels)} | {check.looks_at} | {check.why} |"
            for check in checks
        ]
        head = "| check | finds | looks at | why |\n|---|---|---|---|"
        parts.append(f"### {subject}\n\n{head}\n" + "\n".join(rows))
    return "\n\n".join(parts)


def rights_as_markdown() -> str:
    rights = {role: rights_of(role, "mariadb") for role in ROLES}
    tables = sorted({table for may in rights.values() for table in may})
    rows = []
    for table in tables:
        cells = []
        for role in ROLES:
            shown = ""
            for verb in VERBS:
                columns = rights[role].get(table, {}).get(verb, frozenset())
                whole = columns == every_column(table) or verb == "DELETE"
                shown += (verb[0] if whole else verb[0].lower()) if columns else ""
            cells.append(shown or "–")
        rows.append(f"| `{table.removeprefix(PREFIX)}` | {' | '.join(cells)} |")
    head = f"| table | {' | '.join(ROLES)} |\n|---|{'---|' * len(ROLES)}"
    return head + "\n" + "\n".join(rows)


def between_marks(page: str) -> str:
    found = re.search(r"<!-- generated -->\n\n(.*?)\n\n<!-- end -->", page, re.DOTALL)
    assert found is not None, "the page has lost its marks <!-- generated --> … <!-- end -->"
    return found[1]


def test_the_guide_lists_every_check() -> None:
    written = between_marks((GUIDES / "doctor.md").read_text())

    assert written == checks_as_markdown(), f"put this there:\n{checks_as_markdown()}"


def test_the_guide_lists_every_right() -> None:
    written = between_marks((GUIDES / "roles.md").read_text())

    assert written == rights_as_markdown(), f"put this there:\n{rights_as_markdown()}"


def test_every_check_has_a_name_of_its_own_and_says_what_it_may_answer() -> None:
    checks = [check for listed in SUBJECTS.values() for check in listed]

    assert len({check.id for check in checks}) == len(checks)
    for check in checks:
        assert check.levels == tuple(sorted(check.levels, key=LEVELS.index)), check.id
        assert "unknown" not in check.levels, check.id  # which every check may answer
        assert check.why.endswith("."), check.id


@pytest.mark.parametrize("page", ["doctor.md", "roles.md"])
def test_every_option_that_a_guide_shows_exists(page: str) -> None:
    from click.testing import CliRunner

    from outbox_saga_relay.cli import main

    text = (GUIDES / page).read_text()
    shown = re.findall(r"^outbox-saga ((?:db )?\w[\w-]*)(.*)$", text, re.MULTILINE)
    assert shown
    for command, rest in shown:
        known = CliRunner().invoke(main, [*command.split(), "--help"])
        assert known.exit_code == 0, command
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known.output, (command, option)
