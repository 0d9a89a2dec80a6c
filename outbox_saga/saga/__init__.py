"""Sagas.

A process over several transactions that completes, or is undone step by step, whatever crashes in
between.

Reading order: `definition` (what users write), `progress` (what happens next, pure), `execution`
(one step, one transaction), `orchestrator` (who does it, and who takes over).
"""

from __future__ import annotations

from outbox_saga.saga.context import StepContext, SyncStepContext
from outbox_saga.saga.definition import Saga, Step, hours, minutes, nothing_to_undo
from outbox_saga.saga.orchestrator import Orchestrator

__all__ = [
    "Orchestrator",
    "Saga",
    "Step",
    "StepContext",
    "SyncStepContext",
    "hours",
    "minutes",
    "nothing_to_undo",
]
