"""What every saga peer's script does around its peer: told what to do, it carries out and reports.

A script runs in its peer's own environment, which knows nothing of ours: this module uses the
standard library and SQLAlchemy, which all of these peers bring. What is timed begins when
everything is imported, the tables are there and the peer runs; it ends when the last saga has
ended. Starting the sagas is in it, eight at a time, as it is for those they are compared with.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

STEPS = ("reserve", "charge", "ship")
ACCOUNT = sa.Table(
    "bench_saga_account",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False),
)
_ONE = sa.update(ACCOUNT).where(ACCOUNT.c.id == sa.bindparam("account"))
DO = _ONE.values(balance=ACCOUNT.c.balance + 1)
UNDO = _ONE.values(balance=ACCOUNT.c.balance + 1_000_000)  # so that one sum tells of both


class NoStock(Exception):
    """What the last step raises, after its UPDATE, where sagas are to be undone."""


@dataclass
class Order:
    """What is asked of a peer.

    Args:
        dsn: A libpq URL; `bench_saga_account` is there.
        sagas: So many are started and carried out.
        in_flight: At the same time, at most.
        accounts: The n-th saga changes account n modulo this.
        failing: The last step of each fails, and the others are undone.
        settings: The peer's own.
    """

    dsn: str
    sagas: int
    in_flight: int
    accounts: int
    failing: bool
    settings: dict[str, Any]

    def url(self, driver: str) -> str:
        """For SQLAlchemy."""
        return self.dsn.replace("postgresql://", f"postgresql+{driver}://", 1)


def run(opened: Callable[[Order], AbstractContextManager[Callable[[], int]]]) -> None:
    """One measurement, as the one who started this process orders it.

    Args:
        opened: Has made the peer's tables anew and runs it; gives what carries the sagas out and
            says how many ended as they should.
    """
    logging.disable(logging.WARNING)  # some say something of every saga that fails
    order = Order(**json.loads(sys.argv[1]))
    with opened(order) as work:
        gc.collect()
        print("ready", flush=True)
        sys.stdin.readline()
        cpu, began = time.process_time(), time.monotonic()
        ended = work()
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "ended": ended}), flush=True)
