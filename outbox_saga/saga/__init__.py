"""Sagas.

A process over several transactions that completes, or is undone step by step, whatever crashes in
between.

Reading order: `steps` and `definition` (what users write), `rules` (what they keep), `happened`,
`progress` and `onward` (what happens next, pure), `execution` (one step, one transaction),
`orchestrator` (who does it, and who takes over).
"""

from __future__ import annotations

from outbox_saga.saga.context import StepContext, SyncStepContext
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.saga.steps import Step, hours, minutes, nothing_to_undo

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
