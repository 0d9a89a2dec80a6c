"""A definition drawn, and looked over for what no rule forbids and what is mostly a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from outbox_saga.saga.definition import Saga
from outbox_saga.saga.rules import parallel_pairs
from outbox_saga.saga.steps import Step, nothing_to_undo, usually_undone

LONG = 300.0  # seconds of a timeout from which on a takeover is slow


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to think about; `step` is "" for the whole saga."""

    step: str
    text: str


def mermaid(definition: Saga[Any]) -> str:
    """A Mermaid flowchart: steps, what they wait for, their kinds, and which are never undone."""
    lines = [
        "---",
        f"title: {definition.name} version {definition.version}",
        "---",
        "flowchart TD",
    ]
    names = {name: f"s{number}" for number, name in enumerate(definition.steps)}
    for step in definition.steps.values():
        opening, closing = _BORDERS[_kind(step)]
        lines.append(f'    {names[step.name]}{opening}"{step.name}<br/>{_told(step)}"{closing}')
    for step in definition.steps.values():
        arrow = "-. when .->" if step.when is not None else "-->"
        lines += [f"    {names[other]} {arrow} {names[step.name]}" for other in step.after]
    beyond = [names[s] for s in definition.steps if definition.beyond_pivot(s)]
    if beyond:
        lines += [
            "    classDef beyond stroke-dasharray: 5 5",
            f"    class {','.join(beyond)} beyond",
        ]
    return "\n".join(lines) + "\n"


_BORDERS = {
    "local": ("[", "]"),
    "external": ("[[", "]]"),
    "waits for an event": (">", "]"),
    "waits": ("([", "])"),
    "command": ("[/", "/]"),
}


def _kind(step: Step) -> str:
    if step.kind == "event":
        return "waits for an event"
    if step.kind == "timer":
        return "waits"
    if step.kind == "command":
        return "command"
    return "external" if step.external else "local"


def _told(step: Step) -> str:
    parts = [_kind(step)]
    if step.event is not None:
        parts[0] = f"waits for {step.event.message_class.type_name}"
    if step.pivot:
        parts.append("pivot")
    if callable(step.compensation):
        by = getattr(step.compensation, "__name__", "its compensation")
        elsewhere = f" ({step.undone})" if step.undone != usually_undone(step) else ""
        parts.append(f"undone by {by}{elsewhere}")
    return ", ".join(parts)


def remarks(definition: Saga[Any]) -> Iterator[Remark]:
    """What is allowed, and should be meant."""
    for step in definition.steps.values():
        if step.longest >= LONG:
            yield Remark(
                step.name,
                f"may take {step.longest:g} s, and the lease of every saga is longer than that: a "
                "saga of a process that died is taken over no earlier",
            )
        if step.external and step.compensation is nothing_to_undo and not step.pivot:
            yield Remark(
                step.name,
                "acts outside and leaves nothing to undo; if it does leave something, give it a "
                "compensation",
            )
        if step.compensation is not None and any(
            p.pivot and p.name in definition.before(step.name) for p in definition.steps.values()
        ):
            yield Remark(step.name, "is behind the pivot, so its compensation never runs")
    for one, other in parallel_pairs(definition.steps):
        for name in (one, other):
            step = definition.steps[name]
            if step.kind == "action" and step.writes is None:
                yield Remark(
                    name,
                    f"runs beside {other if name == one else one}; say by writes= which fields it "
                    "returns, so that two of one field are found before they run",
                )
