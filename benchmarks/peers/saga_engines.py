"""Which saga engines there are, what each needs, and the settings that are tried of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.known import Settings


@dataclass(frozen=True, slots=True)
class SagaEngine:
    """Another one.

    Args:
        name: On PyPI.
        script: In this package.
        packages: Pinned; what it is measured with.
        python: The least version of Python it runs on.
        settings: Those that may be its best.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    python: tuple[int, int]
    settings: Sequence[Settings]


SAGA_ENGINES = (
    SagaEngine(
        "dbos",
        "dbos_sagas.py",
        ("dbos==3.4.0", "sqlalchemy[asyncio]==2.1.9", "psycopg[binary]==3.3.9"),
        (3, 11),
        (
            {"step": "step"},
            {"step": "transaction"},
            {"step": "step", "asynchronous": True},
            {"step": "transaction", "asynchronous": True},
        ),
    ),
    SagaEngine(
        "python-saga-orchestrator",
        "python_saga_orchestrator_sagas.py",
        (
            "python-saga-orchestrator==0.7.3",
            "sqlalchemy[asyncio]==2.1.9",
            "asyncpg==0.32.0",
            "psycopg[binary]==3.3.9",
        ),
        (3, 12),
        ({"driver": "asyncpg"}, {"driver": "psycopg"}),
    ),
)
