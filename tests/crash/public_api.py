"""Every public name of the message half, and which operations of the explorer go through it.

A name without an operation has the reason why there is none. `test_public_api.py` finds a name
that is in neither, and an operation that does not come through what it is said to cover.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

import outbox_saga
import outbox_saga_migrations
from outbox_saga.archive import Replay
from outbox_saga.dead_letters import Sweep
from outbox_saga.handler_context import HandlerContext, SyncHandlerContext
from outbox_saga.service import Service
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.waiting import WaitingRoom
from outbox_saga.waiting_messages import WaitingMessages
from outbox_saga_relay.cli import COMMANDS, main
from outbox_saga_relay.housekeeping import Housekeeping
from outbox_saga_relay.relay import Relay

VALUE = "a value, an error or a type: it writes nothing"
READS = "it only reads"
LOOP = "a loop, whose turns come by the clock, around what is explored pass by pass"
SAGAS = "of sagas, whose steps proof 1.5 kills and whose operations have proofs of their own"
ASKS = "it publishes as `UnitOfWork.publish`; its answer is handled as any message is"
PREPARES = "it writes nothing by itself: what it makes does"

CLASSES: tuple[type, ...] = (
    outbox_saga.Archive,
    Replay,
    outbox_saga.DeadLetters,
    Sweep,
    WaitingMessages,
    WaitingRoom,
    outbox_saga.Database,
    Service,
    UnitOfWork,
    HandlerContext,
    SyncHandlerContext,
    Relay,
    Housekeeping,
)

COVERED: dict[str, tuple[str, ...]] = {
    "unit_of_work": ("publish sync", "publish async"),
    "UnitOfWork.publish_many": (
        "publish kinds sync",
        "publish on connections",
        "publish on async connections",
    ),
    "retry_unit": ("retry unit sync", "retry unit async"),
    "interrupted_commit": ("publish kinds sync",),
    "UnitOfWork.publish": ("publish sync", "publish kinds async", "relay delayed"),
    "UnitOfWork.publish_body": ("publish kinds async", "publish when full"),
    "UnitOfWork.keep": ("publish sync",),
    "UnitOfWork.keep_sealed": ("publish sync",),
    "Service.unit_of_work": ("publish kinds sync", "publish kinds async"),
    "Service.work_in": ("publish on connections",),
    "Service.on": ("handle", "fail for good", "pessimistic"),
    "Service.deliver": ("handle", "fail and store"),
    "Service.relay_program": ("relay until empty",),
    "Service.waiting_room": ("retry of waiting",),
    "HandlerContext.publish": ("handle", "return messages"),
    "SyncHandlerContext.publish": ("handle",),
    "HandlerContext.session": ("handle",),
    "SyncHandlerContext.session": ("handle",),
    "Relay.run_once": ("relay to a broker", "relay refusals", "relay hand-over"),
    "Relay.run_until_empty": ("relay until empty",),
    "WaitingRoom.run_once": ("retry of waiting", "waiting retry"),
    "WaitingMessages.list": ("waiting retry",),
    "WaitingMessages.show": ("waiting retry",),
    "WaitingMessages.retry": ("waiting retry", "command waiting"),
    "WaitingMessages.discard": ("waiting discard", "command waiting"),
    "DeadLetters.find": ("dead letter replay",),
    "DeadLetters.groups": ("dead letter replay",),
    "DeadLetters.get": ("dead letter replay",),
    "DeadLetters.body": ("dead letter replay",),
    "DeadLetters.plan": ("dead letter replay", "command dead-letter replay"),
    "DeadLetters.parked": ("dead letter discard", "dead letter unpark"),
    "DeadLetters.waiting": ("dead letter discard",),
    "DeadLetters.replay": ("dead letter replay", "command dead-letter replay"),
    "DeadLetters.replay_all": ("dead letters replay all", "dead letters replay all async"),
    "DeadLetters.discard": ("dead letter discard",),
    "DeadLetters.discard_all": ("dead letters discard all", "command dead-letter discard"),
    "DeadLetters.unpark": ("dead letter unpark", "command dead-letter unpark"),
    "Sweep.run": ("dead letters replay all", "dead letters discard all"),
    "Sweep.run_async": ("dead letters replay all async",),
    "Sweep.run_once": ("dead letters replay all",),
    "Archive.plan": ("archive replay", "archive replay async"),
    "Archive.replay": ("archive replay", "command archive replay"),
    "Replay.run": ("archive replay", "command archive replay"),
    "Replay.run_async": ("archive replay async",),
    "Replay.run_once": ("archive replay",),
    "Housekeeping.plan": ("housekeeping",),
    "Housekeeping.batches": ("housekeeping", "command prune"),
    "Housekeeping.run_once": ("housekeeping", "command prune"),
    "Database.run": ("waiting retry", "dead letter unpark"),
    "Database.look": ("waiting retry",),
    "Database.lend": ("handle",),
    "Database.lend_async": ("handle",),
    "Database.begin": ("dead letter replay",),
    "migrations.upgrade": ("db upgrade", "db upgrade async", "command db upgrade"),
    "migrations.downgrade": ("db downgrade", "command db downgrade"),
    "command dead-letter replay": ("command dead-letter replay",),
    "command dead-letter discard": ("command dead-letter discard",),
    "command dead-letter unpark": ("command dead-letter unpark",),
    "command archive replay": ("command archive replay",),
    "command waiting retry": ("command waiting",),
    "command waiting discard": ("command waiting",),
    "command prune": ("command prune",),
    "command db upgrade": ("command db upgrade",),
    "command db downgrade": ("command db downgrade",),
}

NOT_EXPLORED: dict[str, str] = {
    **dict.fromkeys(
        (
            "Command",
            "CommitUnknown",
            "Decision",
            "Envelope",
            "Event",
            "Failure",
            "NotDone",
            "OutboxSagaError",
            "Reply",
            "RequestFaulted",
            "RequestTimeout",
            "Result",
            "Retry",
            "Success",
            "is_failure",
            "is_success",
            "upcaster",
        ),
        VALUE,
    ),
    **dict.fromkeys(
        (
            "Breaker",
            "Breakers",
            "Saga",
            "SagaEvent",
            "StepContext",
            "SyncStepContext",
            "external",
            "hours",
            "minutes",
            "local",
            "nothing_to_undo",
        ),
        SAGAS,
    ),
    **dict.fromkeys(
        (
            *("Archive", "Database", "DeadLetters", "HandlerContext", "Service"),
            *("SyncHandlerContext", "UnitOfWork"),
        ),
        "by its methods, each by itself",
    ),
    "commit_outcome": "it only reads; proof 2.8 asks its async twin after every unknown commit",
    "async_commit_outcome": "it only reads; proof 2.8 asks it after every unknown commit",
    **dict.fromkeys(
        (f"Service.{verb}" for verb in ("ask", "withdraw", "request", "async_request")), ASKS
    ),
    **dict.fromkeys(("Service.reply", "Service.async_reply"), READS),
    "Service.publisher": PREPARES,
    "Service.handles": SAGAS,
    "Service.orchestrator": SAGAS,
    "Service.orchestrate": SAGAS,
    "Service.relay": LOOP,
    "Service.consume": f"{LOOP}: `consuming.answer`, by the operations `consume …`",
    "Service.run": LOOP,
    "Service.running": LOOP,
    "Service.close": "it gives connections back and writes nothing",
    "Relay.run": f"{LOOP}; proofs 2.6 and 2.10 kill it at random",
    "Relay.hint": "it wakes a loop and writes nothing",
    "Relay.publisher": VALUE,
    "WaitingRoom.run": LOOP,
    "Housekeeping.run": LOOP,
    "Database.engine": PREPARES,
    "Database.async_engine": PREPARES,
    "Database.program_engine": PREPARES,
    "Database.lease_engine": PREPARES,
    "Database.make_room": PREPARES,
    "Database.keep": "renewals come by the clock; its other verbs by what is explored",
    "Database.async_begin": PREPARES,
    "Database.close": "it gives connections back and writes nothing",
    "Database.dispose": "it gives connections back and writes nothing",
    **dict.fromkeys(
        (
            *("migrations.SCRIPT_LOCATION", "migrations.VERSION_TABLE", "migrations.Difference"),
            *("migrations.DowngradeRefused", "migrations.UpgradeBusy"),
            "migrations.UpgradeRefused",
        ),
        VALUE,
    ),
    **dict.fromkeys(("migrations.check", "migrations.current", "migrations.head"), READS),
    "migrations.sql": "it connects to nothing",
    **dict.fromkeys(
        (
            *("command dead-letter list", "command dead-letter show", "command waiting list"),
            *("command waiting show", "command status", "command audit", "command db check"),
            *("command db current", "command doctor"),
        ),
        READS,
    ),
    "command db sql": "it connects to nothing",
    "command db roles": "it writes SQL to the terminal and connects to nothing",
    **dict.fromkeys(("command run", "command consume", "command orchestrate"), LOOP),
    "command relay": f"{LOOP}; with --once: the operation `relay until empty`",
    "command demo": "it runs the others, and kills them itself",
    **dict.fromkeys(
        (f"command saga {verb}" for verb in ("list", "show", "graph", "lint", "check", "figures")),
        READS,
    ),
    **dict.fromkeys(
        (f"command saga {verb}" for verb in ("retry", "skip", "mark-done", "cancel", "resume")),
        SAGAS,
    ),
    "DeadLetters.keys": READS,
    "command dead-letter keys": READS,
    "command breaker list": READS,
    "command breaker reset": SAGAS,
}


def public_names() -> set[str]:
    """All there are, by looking."""
    names = set(outbox_saga.__all__)
    names |= {f"migrations.{name}" for name in outbox_saga_migrations.__all__}
    for kind in CLASSES:
        for owner in kind.__mro__:
            if owner.__module__.startswith("outbox_saga"):
                names |= {
                    f"{kind.__name__}.{name}"
                    for name, value in vars(owner).items()
                    if not name.startswith("_")
                    and (callable(value) or isinstance(value, property))
                }
    return names | set(_commands(main, "command"))


def _commands(group: click.Command, path: str) -> Iterator[str]:
    if not isinstance(group, click.Group):
        yield path
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from _commands(command, f"{path} {name}")


assert COMMANDS  # the root knows its commands without importing them
