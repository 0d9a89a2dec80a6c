"""dbos: a workflow of three steps, which undoes by hand what it did, called directly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import carried  # pyright: ignore[reportMissingImports] - beside this script
import sqlalchemy as sa
from dbos import (  # pyright: ignore[reportMissingImports]
    DBOS,
    AsyncSQLAlchemyDatasource,
    SQLAlchemyDatasource,
)
from sqlalchemy.ext.asyncio import create_async_engine

POOL = {"pool_size": 20}


@contextmanager
def opened(order: carried.Order) -> Iterator[Callable[[], int]]:
    """Launched, on tables of its own."""
    engine = sa.create_engine(order.url("psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA IF EXISTS dbos CASCADE")
    engine.dispose()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": order.dsn,
            "run_admin_server": False,
            "log_level": "CRITICAL",
            "use_listen_notify": True,
        }
    )
    make = asynchronous if order.settings.get("asynchronous") else synchronous
    work = make(order)
    DBOS.launch()
    yield work
    DBOS.destroy()


def synchronous(order: carried.Order) -> Callable[[], int]:
    """Plain functions in threads."""
    change = change_in_step(order) if order.settings["step"] == "step" else change_in_tx(order)

    @DBOS.workflow()  # type: ignore[untyped-decorator]  # its types are in the environment
    def saga(account: int) -> str:
        done = []
        try:
            for name in carried.STEPS:
                change(account, name, undo=False)
                done.append(name)
        except carried.NoStock:
            for name in reversed(done):
                change(account, name, undo=True)
            return "compensated"
        return "completed"

    def work() -> int:
        with ThreadPoolExecutor(order.in_flight) as threads:
            told = list(threads.map(saga, (n % order.accounts for n in range(order.sagas))))
        return told.count("compensated" if order.failing else "completed")

    return work


def change_in_step(order: carried.Order) -> Callable[..., None]:
    """A step, with a transaction of its own inside."""
    engine = sa.create_engine(order.url("psycopg"), pool_size=20)

    @DBOS.step()  # type: ignore[untyped-decorator]
    def change(account: int, name: str, *, undo: bool) -> None:
        with engine.begin() as connection:
            act(connection, order, account, name, undo=undo)

    return change  # type: ignore[no-any-return]


def change_in_tx(order: carried.Order) -> Callable[..., None]:
    """A transaction of its datasource, with its record of the step in it."""
    source = SQLAlchemyDatasource.create(order.dsn, engine_kwargs=POOL)

    @source.transaction(isolation_level="READ COMMITTED")  # type: ignore[untyped-decorator]
    def change(account: int, name: str, *, undo: bool) -> None:
        act(source.sql_session(), order, account, name, undo=undo)

    return change  # type: ignore[no-any-return]


def act(where: Any, order: carried.Order, account: int, name: str, *, undo: bool) -> None:
    """The step itself."""
    where.execute(carried.UNDO if undo else carried.DO, {"account": account})
    if order.failing and name == carried.STEPS[-1]:
        raise carried.NoStock


def asynchronous(order: carried.Order) -> Callable[[], int]:
    """Coroutines of one loop."""
    runner = asyncio.Runner()
    change = runner.run(async_step(order) if order.settings["step"] == "step" else async_tx(order))

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    async def saga(account: int) -> str:
        done = []
        try:
            for name in carried.STEPS:
                await change(account, name, undo=False)
                done.append(name)
        except carried.NoStock:
            for name in reversed(done):
                await change(account, name, undo=True)
            return "compensated"
        return "completed"

    async def all_of_them() -> int:
        told = 0
        wanted = "compensated" if order.failing else "completed"
        waiting = iter(range(order.sagas))

        async def client() -> None:
            nonlocal told
            for number in waiting:
                ended = await saga(number % order.accounts)
                told += ended == wanted

        await asyncio.gather(*(client() for _ in range(order.in_flight)))
        return told

    return lambda: runner.run(all_of_them())


async def async_step(order: carried.Order) -> Callable[..., Any]:
    """As `change_in_step`."""
    engine = create_async_engine(order.url("psycopg"), pool_size=20)

    @DBOS.step()  # type: ignore[untyped-decorator]
    async def change(account: int, name: str, *, undo: bool) -> None:
        async with engine.begin() as connection:
            await connection.run_sync(act, order, account, name, undo=undo)

    return change  # type: ignore[no-any-return]


async def async_tx(order: carried.Order) -> Callable[..., Any]:
    """As `change_in_tx`."""
    source = await AsyncSQLAlchemyDatasource.create(order.dsn, engine_kwargs=POOL)

    @source.transaction(isolation_level="READ COMMITTED")  # type: ignore[untyped-decorator]
    async def change(account: int, name: str, *, undo: bool) -> None:
        await source.sql_session().run_sync(act, order, account, name, undo=undo)

    return change  # type: ignore[no-any-return]


carried.run(opened)
