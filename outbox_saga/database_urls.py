"""From the database URLs people write to the driver this library works with.

`postgres://`, `postgresql://`, `mysql://`, `mariadb://` and `sqlite://` all work, and mean the
same driver on SQLAlchemy 2.0 and 2.1 (whose own defaults differ: psycopg2 there, psycopg here).
`?pooler=true` says that the URL leads through a pooler; no driver sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from outbox_saga.errors import ConfigurationError


@dataclass(frozen=True)
class _Drivers:
    """The drivers of one kind of database; the first of each is ours, the others are kept."""

    sync: tuple[str, ...]
    asynchronous: tuple[str, ...]
    extra: str


_POSTGRES = _Drivers(
    ("psycopg", "psycopg2", "pg8000"), ("psycopg", "psycopg_async", "asyncpg"), "postgres"
)
_MYSQL = _Drivers(("pymysql", "mysqldb", "mariadbconnector"), ("asyncmy", "aiomysql"), "mysql")
_SQLITE = _Drivers(("pysqlite",), ("aiosqlite",), "sqlite")

_DATABASES = {
    "postgres": ("postgresql", _POSTGRES),  # SQLAlchemy itself dropped this spelling
    "postgresql": ("postgresql", _POSTGRES),
    "mysql": ("mysql", _MYSQL),
    "mariadb": ("mariadb", _MYSQL),
    "sqlite": ("sqlite", _SQLITE),
}

# Ours, whose absence we can explain: driver -> the module it is.
_MODULES = {
    "psycopg": "psycopg",
    "pymysql": "pymysql",
    "asyncmy": "asyncmy",
    "aiosqlite": "aiosqlite",
}

# Those that can be told to prepare no statement on the server, and have been tried.
_POOLED = ("psycopg", "psycopg_async")
_SAID = {"true": True, "false": False}

_SECRETS = ("password", "passwd", "secret", "key", "token")  # anywhere in the name of an option


def sync_url(url: str | URL) -> URL:
    """The same database through a driver for sync engines that is installed.

    A sync driver that the URL names is kept; an async one is exchanged for ours.

    Args:
        url: As people write it, with or without a driver.

    Raises:
        ConfigurationError: Not a URL, not a database we support, or its driver is not installed.
    """
    return _with_driver(url, asynchronous=False)


def async_url(url: str | URL) -> URL:
    """The same database through a driver for async engines that is installed.

    An async driver that the URL names is kept; a sync one is exchanged for ours.

    Args:
        url: As people write it, with or without a driver.

    Raises:
        ConfigurationError: Not a URL, not a database we support, or its driver is not installed.
    """
    return _with_driver(url, asynchronous=True)


def split_pooler(url: str | URL) -> tuple[URL, bool | None]:
    """The URL as drivers know it, and what its `pooler=` says; None where it says nothing.

        split_pooler("postgresql://bouncer:6432/shop?pooler=true")   # …/shop, True

    Raises:
        ConfigurationError: Not a URL, or neither true nor false.
    """
    parsed = _parsed(url)
    said = parsed.query.get("pooler")
    if said is None:
        return parsed, None
    if not isinstance(said, str) or said not in _SAID:
        raise ConfigurationError(f"pooler={said!r} in a database URL; write pooler=true or false")
    return parsed.difference_update_query(["pooler"]), _SAID[said]


def connect_args(url: str | URL, *, pooler: bool | None = None) -> dict[str, Any]:
    """What the driver is told besides the URL: through a pooler it prepares no statement.

    In transaction mode the next transaction may be another session of the server, where a
    prepared statement is unknown, or one of its name is another client's.

    Args:
        url: With the driver that is used, as `sync_url` and `async_url` give it, or as written.
        pooler: Whether it leads through one; None: as the URL says.

    Raises:
        ConfigurationError: A pooler before another database than PostgreSQL, or a driver that
            was not tried with one.
    """
    parsed, said = split_pooler(url)
    if not (said if pooler is None else pooler):
        return {}
    name, _, driver = parsed.drivername.partition("+")
    if name not in ("postgres", "postgresql"):
        raise ConfigurationError(f"pooler is for PostgreSQL; this URL is one of {name}")
    if driver and driver not in _POOLED:
        raise ConfigurationError(
            f"through a pooler only psycopg is known to work, and this URL names {driver!r}: it "
            "prepares statements, or sets its sessions up; write postgresql+psycopg://"
        )
    return {"prepare_threshold": None}


def shown_url(url: str | URL) -> str:
    """The URL for logs and terminals: no password, neither before the host nor in the query.

    Raises:
        ConfigurationError: Not a URL; it is not repeated, since it may hold a password.
    """
    parsed = _parsed(url)
    secret = [name for name in parsed.query if any(word in name.lower() for word in _SECRETS)]
    return parsed.difference_update_query(secret).render_as_string(hide_password=True)


def _with_driver(url: str | URL, *, asynchronous: bool) -> URL:
    parsed, _ = split_pooler(url)
    name, _, driver = parsed.drivername.partition("+")
    if name not in _DATABASES:
        raise ConfigurationError(
            f"outbox-saga does not work on {name!r}; use postgresql://, mariadb://, mysql:// or "
            "sqlite:///"
        )
    dialect, drivers = _DATABASES[name]
    usable = drivers.asynchronous if asynchronous else drivers.sync
    if driver not in usable:
        driver = usable[0]
    _require(driver, drivers.extra)
    return parsed.set(drivername=f"{dialect}+{driver}")


def _parsed(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        # from None: what they say may repeat a part of a password
        raise ConfigurationError(
            "this is not a database URL; write one like postgresql://user@host:5432/database or "
            "sqlite:///file.db"
        ) from None
    # the rest of a password would pass for the host, the database or an option, and be shown
    more = isinstance(url, str) and url.count("@") > 1 and parsed.get_backend_name() != "sqlite"
    if more or "@" in (parsed.host or ""):
        raise ConfigurationError(
            "the database URL has more than one '@'; percent-encode it (%40) in a password, and "
            "behind the host"
        )
    return parsed


def _require(driver: str, extra: str) -> None:
    module = _MODULES.get(driver)
    if module is None:  # the service's own choice: SQLAlchemy says what is missing
        return
    try:
        import_module(module)
    except ImportError as error:  # psycopg also raises it where there is no libpq
        raise ConfigurationError(
            f"this database needs {driver}, which cannot be loaded ({error}); "
            f"pip install 'outbox-saga[{extra}]'"
        ) from error
