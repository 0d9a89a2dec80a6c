"""A service's own unit of work: its session, its transaction, and its name on every message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outbox_saga.commits import async_commit_and_close, check_commit_timeout, commit_within
from outbox_saga.database import Database
from outbox_saga.unit_of_work import UnitOfWork


class ServiceUnitOfWork:
    """`with service.unit_of_work() as uow` or `async with …`.

    Uow.session, uow.publish, and sagas start in it.
    """

    def __init__(
        self,
        database: Database,
        work_in: Callable[[Any], UnitOfWork[Any]],
        commit_timeout: float | None,
    ) -> None:
        check_commit_timeout(commit_timeout)
        self._database = database
        self._work_in = work_in
        self._commit_timeout = commit_timeout
        self._session: Any = None

    def __enter__(self) -> UnitOfWork[Any]:
        from sqlalchemy.orm import Session

        self._session = Session(self._database.engine, expire_on_commit=False)
        self._session.begin()
        return self._work_in(self._session)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._session:
            if kind is None:
                commit_within(self._session, self._commit_timeout)

    async def __aenter__(self) -> UnitOfWork[Any]:
        from sqlalchemy.ext.asyncio import AsyncSession

        self._session = AsyncSession(self._database.async_engine, expire_on_commit=False)
        await self._session.begin()
        return self._work_in(self._session)

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            await async_commit_and_close(self._session, self._commit_timeout)
        else:
            await self._session.__aexit__(kind, *rest)
