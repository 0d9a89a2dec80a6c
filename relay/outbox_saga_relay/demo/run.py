"""One run of the demo, from the options to the exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from outbox_saga_relay.demo import report
from outbox_saga_relay.demo.driver import Plan, carry_out
from outbox_saga_relay.demo.generator import generate_orders
from outbox_saga_relay.demo.orders import read_orders
from outbox_saga_relay.demo.progress import observe
from outbox_saga_relay.printing import print_json


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command; see its help."""

    orders: Path | None
    count: int
    concurrency: int
    kills: int
    seed: int
    faults: bool
    postgres: bool
    nats: bool

    def plan(self) -> Plan:
        """What to do; raises OrdersRefused for order files that cannot be used."""
        if self.orders is None:
            book = generate_orders(self.count, seed=self.seed)
        else:
            book = read_orders(self.orders)
        return Plan(
            book=book,
            concurrency=self.concurrency,
            kills=self.kills,
            seed=self.seed,
            faults=self.seed if self.faults else None,
            postgres=self.postgres,
            nats=self.nats,
        )


def run(wanted: Wanted, *, as_json: bool) -> bool:
    """Whether every check holds, after everything was done and told."""
    plan = wanted.plan()
    with _sigterm_leaves_the_block(), observe() as observer:
        outcome = carry_out(plan, observer)
    if as_json:
        print_json(report.as_json(outcome))
    elif sys.stdout.isatty():
        report.print_table(outcome, Console())
    else:
        for line in report.plain_lines(outcome):
            click.echo(line)
    if not outcome.ok:
        seed = f"--faults {wanted.seed}" if wanted.faults else "--no-faults"
        click.echo(f"a check does not hold (with {seed})", err=True)
    return outcome.ok


@contextmanager
def _sigterm_leaves_the_block() -> Iterator[None]:
    """SIGTERM leaves every `with` block, as Ctrl-C does: no process stays behind."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
