"""`outbox-saga` commands that write, in a process of ours: by the code that a shell would run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import click
import sqlalchemy as sa
from click.testing import CliRunner

from outbox_saga.database import Database
from outbox_saga.database_urls import sync_url
from outbox_saga_migrations import upgrade
from outbox_saga_relay import db_command, opened_database
from outbox_saga_relay.cli import main
from tests.crash import handling, keeping_house, operating
from tests.crash.operation import Operation
from tests.crash.process import Process

WHO = ("--operator", "ada", "--reason", "it is mended")


@contextmanager
def _our_engines(process: Process) -> Iterator[None]:
    """Whatever connects meanwhile dies with this process, and goes by its clock."""

    def database(url: Any, **options: Any) -> Database:
        return process.adopt(Database(url, **options))

    class Watched:
        """SQLAlchemy, for `db`, which makes an engine of its own."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sa, name)

        def create_engine(self, *args: Any, **options: Any) -> sa.Engine:
            engine = sa.create_engine(*args, **options)
            process.points.watch_engine(engine)
            return engine

    with (
        patch.object(opened_database, "Database", database),
        patch.object(db_command, "sa", Watched()),
    ):
        yield


async def run(process: Process, *arguments: str) -> None:
    """The command to its end, in a thread: it may have an event loop of its own."""

    def invoke() -> Any:
        with _our_engines(process):
            return CliRunner().invoke(main, arguments, catch_exceptions=False)

    result = await asyncio.to_thread(invoke)
    if result.exit_code and not process.points.dead:
        raise AssertionError(f"{arguments}: {result.output}")


def command(*arguments: str, bare: bool = False) -> Callable[[Process], Awaitable[None]]:
    """The command on the process's database, or on the one that is to get our tables."""

    async def work(process: Process) -> None:
        url = process.world.bare if bare else process.world.url
        shown = sync_url(url).render_as_string(hide_password=False)
        await run(process, *arguments, "--database-url", shown)
        if not bare:
            await process.relay()

    return work


def unless(
    done: Callable[[Process], bool], *arguments: str
) -> Callable[[Process], Awaitable[None]]:
    """The command, if it has not been done."""
    work = command(*arguments)

    async def again(process: Process) -> None:
        if not done(process):
            await work(process)

    return again


async def decide_about_waiting(process: Process) -> None:
    """The dead letter that holds up its key is discarded, the other one tried again."""
    process.world.mended.append(mended=True)
    for position, *dead in process.world.dead_for():
        holds_up = dead == ["crash.grave-park", "handler_failed"]
        verb = ("discard", "--yes") if holds_up else ("retry",)
        await command("waiting", verb[0], str(position), *verb[1:], *WHO)(process)
    await process.wait_out()


async def prune(process: Process) -> None:
    """A round, when all windows are over."""
    if process.database.clock.shift < keeping_house.AGES:
        process.let_time_pass(keeping_house.AGES + keeping_house.SOON)
    url = sync_url(process.world.url).render_as_string(hide_password=False)
    windows = ("--saga-window", "1d", "--barrier-window", "1d")
    await run(process, "prune", "--once", *windows, "--batch", "2", "--pause", "0", "-d", url)


def command_of(names: list[str]) -> Any:
    """What runs when the command of these names does."""
    found: Any = main
    for name in names:
        found = found.get_command(click.Context(found), name)
    return found.callback


_REPLAY = ("archive", "replay", "--since", "1d", "--yes", *WHO)
_DISCARD = ("dead-letter", "discard", "--all", "--unpark", "--yes", *WHO)
_UNPARK = ("dead-letter", "unpark", "b", *WHO)


def _ended(process: Process) -> bool:
    return process.world.facts().messages.count("archive.replay.ended") > 0


def _unparked(process: Process) -> bool:
    return not process.world.parked()


def _no_letters(process: Process) -> bool:
    return not process.world.facts().dead


_up = command("db", "upgrade", bare=True)
_down = command("db", "downgrade", "--yes", bare=True)
COMMANDS = (
    Operation(
        "command dead-letter replay",
        operating.some_are_dead,
        command("dead-letter", "replay", "--all", "--yes", *WHO),
    ),
    Operation(
        "command dead-letter discard",
        operating.some_are_dead,
        command(*_DISCARD),
        again=unless(_no_letters, *_DISCARD),
        check=operating.gone("poison 1", "poison 3"),
    ),
    Operation(
        "command dead-letter unpark",
        operating.some_are_overtaken,
        command(*_UNPARK),
        again=unless(_unparked, *_UNPARK),
        check=operating.unparked_by_record,
    ),
    Operation(
        "command archive replay",
        operating.some_were_published,
        command(*_REPLAY),
        again=unless(_ended, *_REPLAY),
        check=operating.all_again,
        archive=True,
    ),
    Operation(
        "command waiting",
        handling.dead_letters_of_consumers,
        decide_about_waiting,
        again=decide_about_waiting,
        check=operating.one_given_up,
    ),
    Operation(
        "command prune",
        keeping_house.all_is_old,
        prune,
        again=prune,
        check=keeping_house.only_what_is_old,
        shift=keeping_house.AGES + keeping_house.SOON,
    ),
    Operation(
        "command db upgrade",
        keeping_house.before(None),
        _up,
        again=_up,
        check=keeping_house.whole,
    ),
    Operation(
        "command db downgrade",
        keeping_house.before(upgrade),
        _down,
        again=_down,
        check=keeping_house.none_left,
    ),
)
