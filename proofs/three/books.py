"""What the tables of the three services say when all is at rest, and what is wrong with it.

Nothing is taken from anybody's memory: not how many orders there were, not what became of them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from outbox_saga.ids import saga_id
from outbox_saga.tables import tables_in
from outbox_saga.testing import invariants
from outbox_saga.testing.invariants import Change, Effect, HistoryRow, SagaRow
from proofs.three import amounts
from proofs.three.orders import change, order, service
from tests.crash.tables import audit

OURS = tables_in(None)
UNDOABLE = ("accept", "reserve", "pay")
COMMANDED = ("by_commands", "in_haste")
OVER = (*invariants.GOOD_ENDS, "stuck")  # what may be for good, one with a reason


@dataclass(frozen=True)
class Books:
    """All that was read.

    Args:
        lines: Of payments and of inventory, in their order.
        left: The amounts of both, by name.
        remains: Rows that should not be there any more, by database and table.
    """

    orders: Sequence[Any]
    changes: Sequence[Any]
    sagas: Sequence[Any]
    history: Sequence[HistoryRow]
    audit: Sequence[Change]
    lines: Mapping[str, Sequence[Any]]
    left: Mapping[str, Mapping[str, int]]
    remains: Mapping[str, int]


def read(engines: Mapping[str, sa.Engine]) -> Books:
    """The books of all three."""
    with engines["orders"].connect() as connection:
        history = OURS.saga_history
        found = connection.execute(
            sa.select(history).order_by(history.c.saga_id, history.c.number)
        )
        rows = [
            HistoryRow(
                str(r.saga_id), r.number, r.revision, r.transition, r.step, r.attempt, r.detail
            )
            for r in found
        ]
        orders = connection.execute(sa.select(order).order_by(order.c.id)).all()
        changes = connection.execute(sa.select(change).order_by(change.c.number)).all()
        sagas = connection.execute(sa.select(OURS.saga)).all()
        seen = connection.execute(sa.select(audit).order_by(audit.c.number)).all()
    # what came too late changes nothing but the history, which tells of it
    told = {(row.saga_id, row.revision) for row in rows if row.transition == "IGNORED"}
    lines, left = {}, {}
    for name in ("payments", "inventory"):
        with engines[name].connect() as connection:
            written = sa.select(amounts.line).order_by(amounts.line.c.number)
            lines[name] = connection.execute(written).all()
            found_left = connection.execute(sa.select(amounts.amount))
            left[name] = {row.name: row.left for row in found_left}
    return Books(
        orders,
        changes,
        sagas,
        rows,
        [
            Change(
                r.saga_id,
                r.old_revision,
                r.new_revision,
                r.old_state,
                r.new_state,
                r.changed
                or (r.new_revision > r.old_revision and (r.saga_id, r.new_revision) in told),
            )
            for r in seen
        ],
        lines,
        left,
        remains(engines),
    )


def remains(engines: Mapping[str, sa.Engine]) -> dict[str, int]:
    """Rows that have to go before all is at rest, where there are any; and dead letters."""
    found = {}
    for name, engine in engines.items():
        with engine.connect() as connection:
            for table in (OURS.outbox, OURS.blocked_key, OURS.dead_letter, OURS.inbox_waiting):
                count = sa.select(sa.func.count()).select_from(table)
                found[f"{name}: {table.name}"] = connection.execute(count).scalar_one()
    return {name: count for name, count in found.items() if count}


def what_is_wrong(books: Books, count: int, filled: Mapping[str, int]) -> list[str]:
    """Everything that is.

    Args:
        count: How many orders there were to be.
        filled: What of each name there was in the beginning.
    """
    return [
        *_of_sagas(books, count),
        *_of_orders(books),
        *_of_amounts(books, filled),
        *(f"{rows} rows are left of {name}" for name, rows in books.remains.items()),
    ]


def _of_sagas(books: Books, count: int) -> Iterator[str]:
    ids = [row.id for row in books.orders]
    if ids != list(range(1, count + 1)):
        yield f"{len(ids)} orders, {len(set(ids))} of them different, instead of {count}"
    wanted = {saga_id(service.name, r.saga, f"order:{r.id}"): r.id for r in books.orders}
    there = {row.id for row in books.sagas}
    if missing := wanted.keys() - there:
        yield f"{len(missing)} orders have no saga: {[wanted[id_] for id_ in missing][:5]}"
    if extra := there - wanted.keys():
        yield f"{len(extra)} sagas have no order"
    rows = [_row(saga) for saga in books.sagas]
    for violation in (
        *invariants.ended(rows, OVER),
        *invariants.histories(rows, books.history),
        *invariants.revisions(books.audit),
        *_undone(books, rows, {str(id_): number for id_, number in wanted.items()}),
    ):
        yield str(violation)
    for saga in books.sagas:
        if saga.state == "stuck" and not saga.reason:
            yield f"saga {saga.id} is stuck without a reason"


def _undone(
    books: Books, rows: Sequence[SagaRow], numbers: Mapping[str, int]
) -> Iterator[invariants.Violation]:
    """Of the sagas by commands: each effect at most once, undone once, in reverse order."""
    of_order = {number: id_ for id_, number in numbers.items()}
    directions = {"accepted": "do", "cancelled": "undo"}
    logs: list[dict[str, list[Effect]]] = [defaultdict(list) for _ in range(3)]
    for row in books.changes:
        if row.state in directions:
            id_ = of_order.get(row.order_id, "")
            logs[0][id_].append(Effect(id_, "accept", directions[row.state]))  # type: ignore[arg-type]
    for log, (name, step) in zip(
        logs[1:], (("payments", "pay"), ("inventory", "reserve")), strict=True
    ):
        for row in books.lines[name]:
            id_ = of_order.get(row.order_id, "")
            log[id_].append(Effect(id_, step, "do" if row.taken > 0 else "undo"))
    history: dict[str, list[HistoryRow]] = defaultdict(list)
    for entry in books.history:
        history[entry.saga_id].append(entry)
    for saga in rows:
        if saga.name in COMMANDED and saga.state in invariants.GOOD_ENDS:
            mine = [log[saga.id] for log in logs]
            entries = history[saga.id]
            done = {e.step for e in entries if e.transition == "STEP_COMPLETED"}
            # a command whose answer never came is undone, too, and has no place in the order
            entries = [e for e in entries if e.transition != "STEP_COMPENSATED" or e.step in done]
            yield from invariants.undone_once(saga, mine, entries, UNDOABLE)


def _row(saga: Any) -> SagaRow:
    phases = {n: s["phase"] for n, s in json.loads(saga.progress)["steps"].items()}
    return SagaRow(str(saga.id), saga.name, saga.state, saga.revision, phases)


def _of_orders(books: Books) -> Iterator[str]:
    """Each order is as its saga's end says, with all three services."""
    states = {saga.business_key: saga.state for saga in books.sagas}
    changes: dict[int, list[str]] = defaultdict(list)
    for row in books.changes:
        changes[row.order_id].append(row.state)
    taken: dict[str, dict[int, list[int]]] = {name: defaultdict(list) for name in books.lines}
    for name, lines in books.lines.items():
        for row in lines:
            taken[name][row.order_id].append(row.taken)
    for row in books.orders:
        state = states.get(f"order:{row.id}")
        if state not in invariants.GOOD_ENDS:
            continue  # its saga's affair
        end = "confirmed" if state == "completed" else "cancelled"
        if changes[row.id] != ["new", "accepted", end] or row.state != end:
            yield f"order {row.id}, {state}: is {row.state}, was {changes[row.id]}"
        for name, much in (("payments", row.cents), ("inventory", row.quantity)):
            allowed = [[much]] if state == "completed" else [[], [much, -much]]
            if taken[name][row.id] not in allowed:
                yield f"order {row.id} ({row.saga}), {state}: {name} has {taken[name][row.id]}"
    known = {row.id for row in books.orders}
    for name, found in taken.items():
        if strange := found.keys() - known:
            yield f"{name} knows orders that were never placed: {sorted(strange)}"


def _of_amounts(books: Books, filled: Mapping[str, int]) -> Iterator[str]:
    """What is left and what the completed orders have is what there was."""
    completed = {s.business_key for s in books.sagas if s.state == "completed"}
    had: Counter[str] = Counter()
    for row in books.orders:
        if f"order:{row.id}" in completed:
            had[row.customer] += row.cents
            had[row.sku] += row.quantity
    if any(saga.state not in invariants.GOOD_ENDS for saga in books.sagas):
        return  # what a stuck one has is not known
    left = {name: much for found in books.left.values() for name, much in found.items()}
    wanted = {name: much - had[name] for name, much in filled.items()}
    for violation in invariants.conserved("I12", "amount", left, wanted):
        yield str(violation)


def ends(books: Books) -> dict[str, int]:
    """How many of each saga ended how."""
    found = Counter(f"{saga.name}: {saga.state}" for saga in books.sagas)
    return dict(sorted(found.items()))


def transitions(books: Books) -> dict[str, int]:
    """How often what is in the histories."""
    return dict(Counter(row.transition for row in books.history).most_common())


def most_at_once(books: Books) -> int:
    """Sagas that had started and not ended, at most."""
    moments = sorted(
        moment
        for saga in books.sagas
        if saga.ended_at is not None
        for moment in ((saga.started_at, 1), (saga.ended_at, -1))
    )
    now = most = 0
    for _, step in moments:
        now += step
        most = max(most, now)
    return most
