"""What an operation is: one thing a process does, from where, and what must have come of it."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outbox_saga.testing.invariants import HistoryRow, Violation

if TYPE_CHECKING:
    from tests.crash.process import MakeShop, Process
    from tests.crash.world import Facts, World

Work = Callable[["Process"], Awaitable[None]]
Check = Callable[["Facts", "World"], list[Violation]]
Judge = Callable[["World", Sequence[HistoryRow]], list[Violation]]
EVERYWHERE = ("sqlite", "postgres18", "mariadb")


async def nothing(process: Process) -> None:
    """Nothing has to be there."""


def nothing_more(facts: Facts, world: World) -> list[Violation]:
    """What every operation is judged by is enough."""
    del facts, world
    return []


@dataclass(frozen=True)
class Operation:
    """One thing a process does.

    Args:
        name: In reports, and to replay it.
        prepare: Brings the world to where it begins, undisturbed.
        run: What is disturbed.
        broker: Of the process: "recording", or "local".
        end: How its sagas end, whenever the process dies.
        sagas: The sagas it needs.
        archive: Relays keep what they published.
        again: What the next process does first: whoever did it does what is left of it.
        check: What must be true of it at rest, beside what must always be.
        shift: Seconds from now at which recovery happens, beside all leases.
        consumes: What brokers bring goes through `consuming`, each consumer by itself.
        databases: Where it can be had.
        cancels: The running task can be cancelled: it is async to its end.
        shop: Whose service it is; None: the shop's.
        rest: Does all that is left; None: `Process.come_to_rest`.
        repeat: Brokers deliver everything once more; None: `Process.handle_again`.
        judge: What must always be true instead of what is true of messages and of the shop's
            sagas, of the world at rest and the history rows that were there at a death.
    """

    name: str
    prepare: Work
    run: Work
    broker: str = "recording"
    end: str = "completed"
    sagas: tuple[str, ...] = ()
    archive: bool = False
    again: Work = nothing
    check: Check = nothing_more
    shift: float = 0.0
    consumes: bool = False
    databases: tuple[str, ...] = EVERYWHERE
    cancels: bool = False
    shop: MakeShop | None = None
    rest: Work | None = None
    repeat: Work | None = None
    judge: Judge | None = None

    async def come_to_rest(self, process: Process) -> None:
        """All that is left is done."""
        await (process.come_to_rest() if self.rest is None else self.rest(process))

    async def deliver_again(self, process: Process) -> None:
        """What brokers delivered comes once more."""
        await (process.handle_again() if self.repeat is None else self.repeat(process))

    def memory(self) -> dict[str, Any]:
        """What a process needs to know to do it, for `Process`."""
        return {
            "broker": self.broker,
            "sagas": self.sagas,
            "archive": self.archive,
            "consumes": self.consumes,
            "shop": self.shop,
        }


def is_sampled(name: str, database: str) -> bool:
    """Whether the test-suite tries this operation there: on SQLite, and on one server each."""
    server = ("postgres18", "mariadb")[zlib.crc32(name.encode()) % 2]
    return database in ("sqlite", server)
