"""`outbox-saga db`: what people see, what programs read, and the exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from outbox_saga.tables import tables_in
from outbox_saga_migrations import check, head, upgrade
from outbox_saga_relay.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `outbox-saga` with these arguments, in this process."""
    for name in ("OUTBOX_SAGA_DATABASE_URL", "OUTBOX_SAGA_SCHEMA"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*arguments: str, **options: object) -> Result:
        return CliRunner().invoke(main, arguments, prog_name="outbox-saga", **options)  # type: ignore[arg-type]

    return invoke


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def test_from_an_empty_database_to_the_head_and_back(
    run: Run, database_url: str, engine: sa.Engine
) -> None:
    db = ("--database-url", database_url)

    assert run("db", "check", *db).exit_code == 1
    done = run("db", "upgrade", *db, "--json")
    assert done.exit_code == 0, done.output
    changed = json.loads(done.stdout)
    assert (changed["before"], changed["after"]) == (None, head())
    with engine.begin() as connection:
        assert check(connection) == []
    assert run("db", "check", *db).exit_code == 0
    assert json.loads(run("db", "upgrade", *db, "--json").stdout)["before"] == head()
    now = json.loads(run("db", "current", *db, "--json").stdout)
    assert (now["revision"], now["head"], now["up_to_date"]) == (head(), head(), True)

    assert run("db", "downgrade", *db, "--yes").exit_code == 0
    with engine.begin() as connection:
        assert sa.inspect(connection).get_table_names() == []


@pytest.mark.databases("postgres18", "sqlite")
def test_the_environment_names_database_and_schema(
    run: Run, database_url: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_SAGA_DATABASE_URL", database_url)
    if engine.dialect.name == "postgresql":
        monkeypatch.setenv("OUTBOX_SAGA_SCHEMA", "messaging")

    assert run("db", "upgrade").exit_code == 0
    assert run("db", "check").exit_code == 0

    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            assert check(connection, schema="messaging") == []
            assert check(connection) != []


@pytest.mark.needs_a_session("names asyncpg, which is refused where a pooler is said to be")
@pytest.mark.databases("postgres18", "mariadb")
def test_common_spellings_of_the_url_work(run: Run, database_url: str, engine: sa.Engine) -> None:
    spellings = ["postgres", "postgresql", "postgresql+asyncpg"]
    if engine.dialect.name == "mysql":
        spellings = ["mysql", "mariadb", "mysql+asyncmy"]
    _, _, rest = database_url.partition("://")

    for spelling in spellings:
        done = run("db", "upgrade", "-d", f"{spelling}://{rest}")
        assert done.exit_code == 0, done.output


@pytest.mark.databases("sqlite")
def test_check_names_every_difference_and_exits_1(
    run: Run, database_url: str, engine: sa.Engine
) -> None:
    lease = tables_in().partition_lease
    with engine.begin() as connection:
        upgrade(connection)
        connection.execute(lease.delete().where(lease.c.partition == 3))
        connection.exec_driver_sql("drop table outbox_saga_inbox")

    plain = run("db", "check", "-d", database_url)
    assert plain.exit_code == 1
    assert plain.stdout.splitlines() == [
        "outbox_saga_inbox\tmissing",
        "outbox_saga_partition_lease\t1 rows missing, the first is 3",
    ]

    found = run("db", "check", "-d", database_url, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["differences"] == [
        {"table": "outbox_saga_inbox", "what": "missing"},
        {"table": "outbox_saga_partition_lease", "what": "1 rows missing, the first is 3"},
    ]


@pytest.mark.databases("sqlite", "postgres18", "mariadb")
def test_sql_is_that_of_the_urls_database_and_connects_to_nothing(
    run: Run, database_url: str, engine: sa.Engine
) -> None:
    written = run("db", "sql", "-d", database_url)

    assert written.exit_code == 0
    assert "CREATE TABLE outbox_saga_version" in written.stdout
    with engine.begin() as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_sql_needs_to_know_the_kind_of_database(run: Run) -> None:
    asked = run("db", "sql")
    assert (asked.exit_code, "--dialect" in asked.stderr) == (2, True)


@pytest.mark.databases("sqlite")
def test_downgrade_asks_first_and_refuses_to_lose_messages(
    run: Run, database_url: str, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.exec_driver_sql(
            'insert into outbox_saga_outbox (id, "partition", topic, headers, body, created_at) '
            "values ('1', 0, 't', '{}', '', '2026-01-01 00:00:00.000000')"
        )

    asked = run("db", "downgrade", "-d", database_url, input="n\n")
    assert (asked.exit_code, "back to base?" in asked.stderr) == (1, True)

    refused = run("db", "downgrade", "-d", database_url, "--yes")
    assert refused.exit_code == 1
    assert refused.stderr == (
        "Error: 1 unpublished messages would be lost; let them end first, or pass force "
        "(--force)\n"
    )

    assert run("db", "downgrade", "-d", database_url, "--yes", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["db", "upgrade", "-d", "nonsense"], 1, "this is not a database URL"),
        (["db", "upgrade", "-d", "oracle://u@h/d"], 1, "does not work on 'oracle'"),
        (["db", "upgrade", "-d", "sqlite://", "--revision", "x"], 1, "no revision 'x'"),
        (["db", "current", "-d", "sqlite:///nowhere.db"], 1, "there is no file nowhere.db"),
        (["db", "upgrade", "-d", "sqlite:////nowhere/x.db"], 1, "unable to open database file"),
        (["db", "upgrade", "-d", "postgres://u:secret@127.0.0.1:1/d"], 1, "Connection refused"),
        (["db", "upgrade"], 2, "Missing option '--database-url'"),
        (["db", "upgrade", "-d", "sqlite://", "--schema", "a b"], 2, "ASCII letters"),
        (["db", "nonsense"], 2, "No such command"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_an_error_is_one_line_without_a_password_or_a_traceback(
    run: Run, arguments: list[str], code: int, said: str
) -> None:
    ended = run(*arguments)

    assert ended.exit_code == code
    assert said in ended.stderr.splitlines()[-1]
    if code == 1:
        assert len(ended.stderr.splitlines()) == 1
    assert "secret" not in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.databases("sqlite")
def test_a_question_does_not_make_a_file(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    missing = tmp_path_factory.mktemp("empty") / "typo.db"

    for question in ("current", "check"):
        assert run("db", question, "-d", f"sqlite:///{missing}").exit_code == 1
    assert not missing.exists()


def test_debug_shows_where_an_error_came_from(run: Run) -> None:
    ended = run("--debug", "db", "upgrade", "-d", "nonsense")

    assert type(ended.exception).__name__ == "ConfigurationError"


@pytest.mark.databases("sqlite")
def test_on_a_terminal_there_are_aligned_columns_under_names(database_url: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "outbox_saga_relay", "db", "upgrade", "-d", database_url]
    subprocess.run(command, stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)

    names, row = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert names.split() == ["database", "before", "after"]
    assert row.split() == [database_url, "none", head()]
    assert names.index("before") == row.index("none")


@pytest.mark.databases("sqlite")
def test_a_password_is_never_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run("db", "downgrade", "-d", "postgres://u:secret@h/d?password=secret2", input="n\n")

    assert "postgres://u:***@h/d" in asked.output
    assert "secret" not in asked.output
