"""The sagas that are measured: three local steps, each one Core UPDATE and one event.

What is done adds one to an account and what is undone adds a million, so that one sum tells of
both: `effects`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.results import Failure
from outbox_saga.saga.context import StepContext, SyncStepContext
from outbox_saga.saga.definition import Saga
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork

IN_FLIGHT = 8
STEPS = ("reserve", "charge", "ship")
ACCOUNTS = 10_000

Kind = Literal["async", "def"]

ACCOUNT = sa.Table(
    "bench_saga_account",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False),
)
_ONE = sa.update(ACCOUNT).where(ACCOUNT.c.id == sa.bindparam("account"))
DO = _ONE.values(balance=ACCOUNT.c.balance + 1)
UNDO = _ONE.values(balance=ACCOUNT.c.balance + 1_000_000)


class Data(BaseModel):
    """The data of a saga."""

    account: int


class Stepped(Event, topic="steps"):
    """What each step publishes."""

    account: int
    step: str


def definition(kind: Kind, *, failing: bool = False) -> Saga[Data]:
    """All steps `async def`, or all plain `def`.

    Args:
        failing: The last step says no after its UPDATE, and what was done is undone.
    """

    async def do(step: StepContext[Data]) -> Failure[str] | None:
        await step.session.execute(DO, {"account": step.data.account})
        step.publish(Stepped(account=step.data.account, step=step.step), key=str(step.saga_id))
        return Failure("no stock") if failing and step.step == STEPS[-1] else None

    async def undo(step: StepContext[Data]) -> None:
        await step.session.execute(UNDO, {"account": step.data.account})
        step.publish(Stepped(account=step.data.account, step=step.step), key=str(step.saga_id))

    def do_def(step: SyncStepContext[Data]) -> Failure[str] | None:
        step.session.execute(DO, {"account": step.data.account})
        step.publish(Stepped(account=step.data.account, step=step.step), key=str(step.saga_id))
        return Failure("no stock") if failing and step.step == STEPS[-1] else None

    def undo_def(step: SyncStepContext[Data]) -> None:
        step.session.execute(UNDO, {"account": step.data.account})
        step.publish(Stepped(account=step.data.account, step=step.step), key=str(step.saga_id))

    saga = Saga("bench", data=Data)
    action, compensation = (do, undo) if kind == "async" else (do_def, undo_def)
    for name in STEPS:
        saga.step(name, action, compensation=compensation)
    return saga


@dataclass(frozen=True, slots=True)
class Ground:
    """A database in which sagas are carried on, again and again.

    Args:
        url: For sync engines.
        count: Sagas of one run.
    """

    url: str
    count: int

    def prepare(self) -> None:
        """Accounts, once."""
        database = Database(self.url, pool_size=1)
        with database.begin() as connection:
            ACCOUNT.create(connection)
            connection.execute(
                sa.insert(ACCOUNT), [{"id": n, "balance": 0} for n in range(ACCOUNTS)]
            )
        database.engine.dispose()

    def empty(self) -> None:
        """No saga, no message, no effect; vacuumed, and a checkpoint is made."""
        database, tables = Database(self.url, pool_size=1), tables_in()
        with database.begin() as connection:
            for table in (tables.outbox, tables.saga, tables.saga_history):
                connection.exec_driver_sql(f"TRUNCATE TABLE {table.name}")
            connection.execute(sa.update(ACCOUNT).values(balance=0))
        self._settle(database)

    def begin_again(self, saga: Saga[Data]) -> list[UUID]:
        """That many new ones, and nothing else."""
        self.empty()
        database = Database(self.url, pool_size=1)
        ids = []
        for numbers in _chunks(range(self.count), 100):
            with database.begin() as connection:
                uow = UnitOfWork(connection)
                ids += [saga.start(uow, Data(account=n % ACCOUNTS)) for n in numbers]
        self._settle(database)
        return ids

    def _settle(self, database: Database) -> None:
        with database.engine.connect() as connection:
            automatic = connection.execution_options(isolation_level="AUTOCOMMIT")
            automatic.exec_driver_sql(f"VACUUM ANALYZE {tables_in().saga.name}")
            automatic.exec_driver_sql(f"VACUUM ANALYZE {ACCOUNT.name}")
            automatic.exec_driver_sql("CHECKPOINT")
        database.engine.dispose()

    def check(self, *, failing: bool = False) -> None:
        """Every effect, message and history row is there, whoever made them."""
        done = len(STEPS) - failing
        tables = tables_in()
        history = tables.saga_history
        wanted = {
            "ended": self.count,
            "effects": self.count * (done + 1_000_000 * done * failing),
            "messages": self.count * done * (1 + failing),
            "completed steps": self.count * done,
            "compensated steps": self.count * done * failing,
        }
        database = Database(self.url, pool_size=1)
        with database.begin() as connection:
            ended = tables.saga.c.state == ("compensated" if failing else "completed")
            found = {
                "ended": _count(connection, tables.saga, ended),
                "effects": effects(connection),
                "messages": _count(connection, tables.outbox),
                "completed steps": _count(
                    connection, history, history.c.transition == "STEP_COMPLETED"
                ),
                "compensated steps": _count(
                    connection, history, history.c.transition == "STEP_COMPENSATED"
                ),
            }
        database.engine.dispose()
        if found != wanted:
            raise RuntimeError(f"found {found}, wanted {wanted}")


def effects(connection: sa.Connection) -> int:
    """What was done, and a million times what was undone."""
    return int(connection.execute(sa.select(sa.func.sum(ACCOUNT.c.balance))).scalar_one())


def _count(connection: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    return connection.execute(
        sa.select(sa.func.count()).select_from(table).where(*where)
    ).scalar_one()


def _chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
