"""The URLs people write, and the drivers they mean."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import pytest
from sqlalchemy import URL, make_url

from outbox_saga.database import Database
from outbox_saga.database_urls import async_url, connect_args, shown_url, split_pooler, sync_url
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


@pytest.mark.parametrize(
    "option",
    [
        *("ssl_key_password", "oauth_client_secret", "scram_client_key", "scram_server_key"),
        *("sslpassword", "sslkey", "passwd", "SSL_KEY", "access_token"),
    ],
)
def test_no_secret_that_is_an_option_is_shown(option: str) -> None:
    assert shown_url(f"mariadb://u@h/d?{option}=hunter2&charset=utf8mb4") == (
        "mariadb://u@h/d?charset=utf8mb4"
    )


@pytest.mark.parametrize("letter", list("?/#@:,&=[]% "))
@pytest.mark.parametrize("rest", ["h/d", "h:5432/d", "h", "h/d?sslmode=require"])
def test_a_password_that_is_not_percent_encoded_is_not_shown(letter: str, rest: str) -> None:
    for password in (f"hun{letter}ter2", f"hun{letter}ter2@x", f"hun{letter}@ter2"):
        try:
            told = shown_url(f"postgresql://u:{password}@{rest}")
        except ConfigurationError:
            told = traceback.format_exc()
        assert "ter2" not in told.replace("hunter2", "")


def test_an_at_in_a_path_or_an_encoded_one_is_kept() -> None:
    assert sync_url("sqlite:////home/ada@shop/a@b.db").database == "/home/ada@shop/a@b.db"
    encoded = sync_url("postgresql://ada%40shop:p%40ss@h/d?application_name=a%40b")
    assert (encoded.username, encoded.password, encoded.query["application_name"]) == (
        "ada@shop",
        "p@ss",
        "a@b",
    )
    with pytest.raises(ConfigurationError, match="more than one '@'"):
        sync_url(URL.create("postgresql", "u", "se", "cret@h"))


def test_a_url_says_whether_it_leads_through_a_pooler_and_no_driver_sees_it() -> None:
    assert split_pooler("postgres://h/d?pooler=true&x=y") == (make_url("postgres://h/d?x=y"), True)
    assert split_pooler("postgres://h/d?pooler=false") == (make_url("postgres://h/d"), False)
    assert split_pooler("postgres://h/d") == (make_url("postgres://h/d"), None)
    for turn in (sync_url, async_url):
        assert "pooler" not in turn("postgres://h/d?pooler=true").query


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgres://h/d", {}),
        ("postgres://h/d?pooler=false", {}),
        ("postgres://h/d?pooler=true", {"prepare_threshold": None}),
        ("postgresql+psycopg://h/d?pooler=true", {"prepare_threshold": None}),
        ("sqlite:///x", {}),
    ],
)
def test_through_a_pooler_nothing_is_prepared(url: str, told: dict[str, None]) -> None:
    assert connect_args(url) == told


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres://h/d?pooler=yes", "write pooler=true or false"),
        ("postgres://h/d?pooler=true&pooler=true", "write pooler=true or false"),
        ("mysql://h/d?pooler=true", "pooler is for PostgreSQL"),
        ("sqlite:///x?pooler=true", "pooler is for PostgreSQL"),
        ("postgresql+asyncpg://h/d?pooler=true", "only psycopg is known to work"),
        ("postgresql+psycopg2://h/d?pooler=true", "only psycopg is known to work"),
    ],
)
def test_a_pooler_that_cannot_be_meant_or_was_not_tried_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        connect_args(url)


def test_a_database_says_at_once_what_cannot_be_meant() -> None:
    with pytest.raises(ConfigurationError, match="pooler=False and the option pooler=True"):
        Database("postgres://h/d?pooler=false", pooler=True)
    with pytest.raises(ConfigurationError, match="pooler is for PostgreSQL"):
        Database("sqlite:///x", pooler=True)
    with pytest.raises(ConfigurationError, match="listen_url is direct"):
        Database("postgres://h/d", listen_url="postgres://h/d?pooler=true")
    for url, listen_url in [
        ("sqlite:///x", "sqlite:///y"),
        ("mysql://h/d", "mysql://h/d"),
        ("sqlite:///x", "postgres://h/d"),
        ("postgres://h/d", "mysql://h/d"),
    ]:
        with pytest.raises(ConfigurationError, match="only PostgreSQL has LISTEN"):
            Database(url, listen_url=listen_url)
    driver = Database("postgresql+asyncpg://h/d", pooler=True)
    assert driver.engine.driver == "psycopg"  # the sync one is ours
    with pytest.raises(ConfigurationError, match="only psycopg is known to work"):
        _ = driver.async_engine
    assert Database("postgres://h/d?pooler=true").pooler
    assert Database("postgres://h/d?pooler=true", pooler=True).url == make_url("postgres://h/d")
