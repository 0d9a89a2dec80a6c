"""From the database URLs people write to the driver this library works with.

`postgres://`, `postgresql://`, `mysql://`, `mariadb://` and `sqlite://` all work, and mean the
same driver on SQLAlchemy 2.0 and 2.1 (whose own defaults differ: psycopg2 there, psycopg here).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

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

_SECRETS = frozenset({"password", "passwd", "sslpassword", "sslkey", "ssl_key"})


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


def shown_url(url: str | URL) -> str:
    """The URL for logs and terminals: no password, neither before the host nor in the query.

    Raises:
        ConfigurationError: Not a URL; it is not repeated, since it may hold a password.
    """
    parsed = _parsed(url)
    secret = [name for name in parsed.query if name.lower() in _SECRETS]
    return parsed.difference_update_query(secret).render_as_string(hide_password=True)


def _with_driver(url: str | URL, *, asynchronous: bool) -> URL:
    parsed = _parsed(url)
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
        return make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise ConfigurationError(
            "this is not a database URL; write one like postgresql://user@host:5432/database or "
            "sqlite:///file.db"
        ) from error


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
