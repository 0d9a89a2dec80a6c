"""What the process is doing when it dies: each public way of using messages, each kind of step.

And each kind of transition of a saga.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.unit_of_work import unit_of_work
from tests.crash import handling, publishing, relaying
from tests.crash.commands import COMMANDS
from tests.crash.journey_operations import SAGA_GROUPS
from tests.crash.keeping_house import KEEPING_HOUSE
from tests.crash.operating import OPERATING
from tests.crash.operation import Operation
from tests.crash.process import Process
from tests.crash.shop import OrderData
from tests.crash.tables import order


def saga(name: str) -> Operation:
    """One instance of the saga, from its start to its end."""

    async def started(process: Process) -> None:
        make = sessionmaker(process.database.engine, class_=Session)
        with unit_of_work(make, source="crash") as uow:
            id_ = process.shop.sagas[name].start(uow, OrderData(order=7), business_key="order:7")
            uow.session.execute(sa.insert(order).values(saga_id=str(id_)))

    async def carried_on(process: Process) -> None:
        await process.carry_on()

    return Operation(
        f"saga {name}",
        started,
        carried_on,
        end="compensated" if name.endswith("-undone") else "completed",
        sagas=(name,),
    )


KINDS = (
    "local-async",
    "local-def",
    "external-idempotent",
    "external-def",
    "external-query",
    "local-exception",
    "external-exception",
    "local-timeout",
    "external-timeout",
    "five-steps",
)


def _named(*operations: Operation) -> dict[str, Operation]:
    return {operation.name: operation for operation in operations}


SAGAS = _named(*(saga(f"{kind}{suffix}") for kind in KINDS for suffix in ("", "-undone")))
# those of proof 1.5, before there was anything else
FIRST = _named(*publishing.FIRST, *relaying.FIRST, *handling.FIRST) | SAGAS
GROUPS: dict[str, tuple[Operation, ...]] = {
    "publishing": publishing.PUBLISHING,
    "relaying": relaying.RELAYING,
    "handling": handling.HANDLING,
    "operating": OPERATING,
    "keeping-house": KEEPING_HOUSE,
    "commands": COMMANDS,
}
MESSAGES = _named(*(operation for group in GROUPS.values() for operation in group))
# those of proof 3.2: a saga's whole way, by the kind of what happens on it
JOURNEYS = _named(*(operation for group in SAGA_GROUPS.values() for operation in group))
OPERATIONS = FIRST | MESSAGES | JOURNEYS
