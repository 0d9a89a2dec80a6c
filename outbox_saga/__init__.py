"""Transactional outbox, inbox and sagas for Python services with a SQL database.

Reading order: `messages` and `results` (values), `unit_of_work` (publish inside a transaction),
`inbox` (handle once), `saga` (complete or undo), `service` (all of a service in one object),
`brokers` (how messages travel), `dead_letters` and `archive` (what operators decide).

What is promised, and nothing more: at-least-once publication with a stable id; first deliveries of
one key in the order in which their transactions committed; exactly-once effect in the inbox's own
database; every saga ends completed, compensated, or stuck with a reason for a person.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# At once, unlike the others: the module has the function's name, and importing it later would put
# the module in the function's place.
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work

if TYPE_CHECKING:
    from outbox_saga.archive import Archive
    from outbox_saga.breaker import Breaker
    from outbox_saga.commit_outcomes import async_commit_outcome, commit_outcome
    from outbox_saga.commits import interrupted_commit
    from outbox_saga.database import Database
    from outbox_saga.dead_letters import DeadLetters
    from outbox_saga.decisions import Decision
    from outbox_saga.envelopes import Envelope
    from outbox_saga.errors import (
        CommitUnknown,
        NotDone,
        OutboxSagaError,
        RequestFaulted,
        RequestTimeout,
    )
    from outbox_saga.handler_context import HandlerContext, SyncHandlerContext
    from outbox_saga.messages import Command, Event, Reply
    from outbox_saga.results import Failure, Result, Success, is_failure, is_success
    from outbox_saga.retries import Retry
    from outbox_saga.saga.breakers import Breakers
    from outbox_saga.saga.context import StepContext, SyncStepContext
    from outbox_saga.saga.definition import Saga
    from outbox_saga.saga.events import SagaEvent
    from outbox_saga.saga.steps import external, hours, local, minutes, nothing_to_undo
    from outbox_saga.service import Service
    from outbox_saga.unit_retries import retry_unit
    from outbox_saga.upcasting import upcaster

_HOMES = {
    "Archive": "archive",
    "Breaker": "breaker",
    "Breakers": "saga.breakers",
    "Command": "messages",
    "CommitUnknown": "errors",
    "Database": "database",
    "DeadLetters": "dead_letters",
    "Decision": "decisions",
    "Envelope": "envelopes",
    "Event": "messages",
    "Failure": "results",
    "HandlerContext": "handler_context",
    "NotDone": "errors",
    "OutboxSagaError": "errors",
    "Reply": "messages",
    "RequestFaulted": "errors",
    "RequestTimeout": "errors",
    "Result": "results",
    "Retry": "retries",
    "Saga": "saga.definition",
    "SagaEvent": "saga.events",
    "Service": "service",
    "StepContext": "saga.context",
    "Success": "results",
    "SyncHandlerContext": "handler_context",
    "SyncStepContext": "saga.context",
    "async_commit_outcome": "commit_outcomes",
    "commit_outcome": "commit_outcomes",
    "external": "saga.steps",
    "hours": "saga.steps",
    "interrupted_commit": "commits",
    "is_failure": "results",
    "is_success": "results",
    "local": "saga.steps",
    "minutes": "saga.steps",
    "nothing_to_undo": "saga.steps",
    "retry_unit": "unit_retries",
    "upcaster": "upcasting",
}

__all__ = [
    "Archive",
    "Breaker",
    "Breakers",
    "Command",
    "CommitUnknown",
    "Database",
    "DeadLetters",
    "Decision",
    "Envelope",
    "Event",
    "Failure",
    "HandlerContext",
    "NotDone",
    "OutboxSagaError",
    "Reply",
    "RequestFaulted",
    "RequestTimeout",
    "Result",
    "Retry",
    "Saga",
    "SagaEvent",
    "Service",
    "StepContext",
    "Success",
    "SyncHandlerContext",
    "SyncStepContext",
    "UnitOfWork",
    "async_commit_outcome",
    "commit_outcome",
    "external",
    "hours",
    "interrupted_commit",
    "is_failure",
    "is_success",
    "local",
    "minutes",
    "nothing_to_undo",
    "retry_unit",
    "unit_of_work",
    "upcaster",
]


def __getattr__(name: str) -> Any:
    # on first use: a service that only publishes need not load the orchestrator
    if name not in _HOMES:
        raise AttributeError(f"module 'outbox_saga' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"outbox_saga.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
