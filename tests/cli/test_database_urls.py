"""The URLs people write, and the drivers they mean."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from sqlalchemy import URL

from outbox_saga.database_urls import async_url, shown_url, sync_url
from outbox_saga.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "sync", "asynchronous"),
    [
        ("postgres", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg2", "postgresql+psycopg2", "postgresql+psycopg"),
        ("postgresql+asyncpg", "postgresql+psycopg", "postgresql+asyncpg"),
        ("mysql", "mysql+pymysql", "mysql+asyncmy"),
        ("mariadb", "mariadb+pymysql", "mariadb+asyncmy"),
        ("mysql+mysqldb", "mysql+mysqldb", "mysql+asyncmy"),
        ("mysql+aiomysql", "mysql+pymysql", "mysql+aiomysql"),
    ],
)
def test_a_url_is_turned_to_the_driver_of_the_right_kind(
    written: str, sync: str, asynchronous: str
) -> None:
    rest = "u:p%40ss@h:1/d?x=y"

    assert sync_url(f"{written}://{rest}").render_as_string(hide_password=False) == (
        f"{sync}://{rest}"
    )
    assert async_url(f"{written}://{rest}").render_as_string(hide_password=False) == (
        f"{asynchronous}://{rest}"
    )


@pytest.mark.parametrize("path", [None, "orders.db", "/var/orders.db", ":memory:"])
def test_a_sqlite_url_keeps_its_path(path: str | None) -> None:
    written = "sqlite://" if path is None else f"sqlite:///{path}"

    for turned, driver in ((sync_url(written), "pysqlite"), (async_url(written), "aiosqlite")):
        assert (turned.drivername, turned.database) == (f"sqlite+{driver}", path)


@pytest.mark.parametrize("turn", [sync_url, async_url])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense:secret", "this is not a database URL"),
        ("postgres://u:secret@h:port/d", "this is not a database URL"),
        ("mssql://u:secret@h/d", "does not work on 'mssql'"),
        ("", "this is not a database URL"),
    ],
)
def test_what_cannot_work_is_refused_without_repeating_it(
    turn: Callable[[str], URL], url: str, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        turn(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgres://h/d", "psycopg", "postgres"),
        ("mysql://h/d", "asyncmy", "mysql"),
        ("sqlite:///x", "aiosqlite", "sqlite"),
    ],
)
def test_a_driver_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigurationError, match=rf"pip install 'outbox-saga\[{extra}\]'"):
        async_url(url)


def test_no_password_is_shown_from_wherever_it_stands() -> None:
    assert shown_url("postgres://u:secret@h/d?password=secret&sslmode=require") == (
        "postgres://u:***@h/d?sslmode=require"
    )
