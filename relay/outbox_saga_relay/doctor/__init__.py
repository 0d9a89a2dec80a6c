"""Doctor: what in a database or a broker would lose, double or hold up messages and sagas.

`registry` lists every check; `examination` makes them; `findings` says what comes of it.

    report = examine_database(Database(url), role="relay")
    for finding in report.findings: ...
"""

from __future__ import annotations

from outbox_saga_relay.doctor.cases import DEFAULT_LIMITS, Limits
from outbox_saga_relay.doctor.examination import examine_broker, examine_database
from outbox_saga_relay.doctor.findings import Check, Finding, Level, Report
from outbox_saga_relay.doctor.registry import SUBJECTS

__all__ = [
    "DEFAULT_LIMITS",
    "SUBJECTS",
    "Check",
    "Finding",
    "Level",
    "Limits",
    "Report",
    "examine_broker",
    "examine_database",
]
