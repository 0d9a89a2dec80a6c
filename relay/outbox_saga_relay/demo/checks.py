"""What must be true at the end of every run, whatever was killed. Pure: facts in, verdicts out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outbox_saga_relay.demo.facts import Facts
from outbox_saga_relay.demo.kills import Kill

_NAMED = 20  # offending ids that are printed


@dataclass(frozen=True, slots=True)
class Check:
    """One verdict; `detail` counts what was looked at, or names what offends."""

    name: str
    ok: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        """As it is printed by --json."""
        return asdict(self)


def check_all(facts: Facts, kills: Sequence[Kill], *, kills_wanted: int) -> list[Check]:
    """Every check, each with a verdict."""
    checks = [
        _check("every saga ended, none is stuck", _sagas, facts),
        _check("orders are there exactly for completed sagas", _orders, facts),
        _check("stock + reserved + sold is what was supplied, nothing is reserved", _stock, facts),
        _check("money: completed orders are charged once, refused ones 0 net", _money, facts),
        _check("one OrderConfirmed per completed order, handled exactly once", _confirmed, facts),
        _check("every other event exactly once, and only if its cause committed", _events, facts),
        _check("users are there exactly for completed onboardings", _users, facts),
        _check("the outbox is empty: nothing waits, is blocked or dead", _outbox, facts),
        _check("published = handled", _handled, facts),
    ]
    if kills_wanted:
        checks.append(_kills(kills, kills_wanted))
    return checks


Verdict = tuple[list[str], str]


def _check(name: str, find: Callable[[Facts], Verdict], facts: Facts) -> Check:
    offending, counted = find(facts)
    return Check(name, ok=not offending, detail=_named(offending) if offending else counted)


def _named(offending: Sequence[str]) -> str:
    more = len(offending) - _NAMED
    return "; ".join(offending[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _sagas(facts: Facts) -> Verdict:
    everybody = [(f"user {key}", saga) for key, saga in facts.onboardings.items()]
    everybody += [(f"order {key}", saga) for key, saga in facts.orderings.items()]
    offending = [
        f"{who}: saga {saga.id} is {saga.state} ({saga.reason or 'no reason given'})"
        for who, saga in everybody
        if saga.state not in ("completed", "compensated")
    ]
    offending += [f"order {id_} came in and has no saga" for id_ in facts.requests
                  if id_ not in facts.orderings]  # fmt: skip
    offending += [f"order {id_} has a saga and never came in"
                  for id_ in sorted(facts.orderings.keys() - set(facts.requests))]  # fmt: skip
    return offending, f"{len(everybody)} sagas"


def _orders(facts: Facts) -> Verdict:
    completed = set(facts.orders_that("completed"))
    created = {row["id"] for row in facts.orders if row["state"] == "created"}
    offending = [
        f"order {id_} is completed and was not created" for id_ in sorted(completed - created)
    ]
    offending += [
        f"order {id_} is created and its saga is not completed"
        for id_ in sorted(created - completed)
    ]
    return offending, f"{len(completed)} completed, {len(facts.orders) - len(created)} cancelled"


def _stock(facts: Facts) -> Verdict:
    completed = set(facts.orders_that("completed"))
    sold: Counter[int] = Counter()
    for line in facts.order_lines:
        if line["order_id"] in completed:
            sold[line["product_id"]] += line["quantity"]
    offending = []
    for row in facts.products:
        parts = f"stock {row['stock']} + reserved {row['reserved']} + sold {row['sold']}"
        if row["stock"] + row["reserved"] + row["sold"] != row["supplied"]:
            offending.append(f"product {row['id']}: {parts} is not {row['supplied']}")
        elif row["reserved"]:
            offending.append(f"product {row['id']}: {row['reserved']} still reserved")
        elif row["sold"] != sold[row["id"]]:
            offending.append(
                f"product {row['id']}: sold {row['sold']}, in completed orders {sold[row['id']]}"
            )
    offending += [
        f"order {row['order_id']}: product {row['product_id']} is still held"
        for row in facts.reservations
        if row["state"] == "held"
    ]
    return offending, f"{len(facts.products)} products, {sum(sold.values())} pieces sold"


def _money(facts: Facts) -> Verdict:
    charged: dict[int, list[int]] = defaultdict(list)
    refunded: Counter[int] = Counter()
    for charge in facts.ledger["charges"]:
        charged[charge["order_id"]].append(charge["amount_cents"])
    for refund in facts.ledger["refunds"]:
        refunded[refund["order_id"]] += refund["amount_cents"]
    due = {row["id"]: row["total_cents"] for row in facts.orders if row["state"] == "created"}
    offending = []
    for order_id in sorted({*facts.orderings, *charged}):
        charges = charged[order_id]
        net = sum(charges) - refunded[order_id]
        saga = facts.orderings.get(order_id)
        wanted = due.get(order_id, 0) if saga is not None and saga.state == "completed" else 0
        if len(charges) > 1:
            offending.append(f"order {order_id}: charged {len(charges)} times")
        elif net != wanted:
            offending.append(f"order {order_id}: {net} cents net, should be {wanted}")
    total = sum(map(sum, charged.values())) - sum(refunded.values())
    return offending, f"{total} cents, {len(facts.ledger['refunds'])} refunds"


def _confirmed(facts: Facts) -> Verdict:
    completed = set(facts.orders_that("completed"))
    wanted = {f"order:{id_}" for id_ in completed}
    offending = _differences("OrderConfirmed of", wanted, _subjects(facts, "OrderConfirmed"))
    mails = [mail["about"] for mail in facts.ledger["mails"] if mail["kind"] == "confirmation"]
    offending += _differences("confirmation mail of", wanted, mails)
    counted: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for order in facts.orders:
        if order["id"] in completed:
            counted[order["customer_id"]] += 1
            spent[order["customer_id"]] += order["total_cents"]
    for user in facts.users:
        id_ = user["id"]
        if (user["confirmed_orders"], user["spent_cents"]) != (counted[id_], spent[id_]):
            offending.append(
                f"user {id_}: {user['confirmed_orders']} orders for {user['spent_cents']} cents "
                f"counted, {counted[id_]} for {spent[id_]} completed"
            )
    return offending, f"{len(completed)} confirmed"


def _events(facts: Facts) -> Verdict:
    released = {row["order_id"] for row in facts.reservations if row["state"] == "released"}
    causes = {
        "OrderPlaced": {f"order:{id_}" for id_ in facts.requests},
        "OrderRefused": {f"order:{id_}" for id_ in released},
        "OrderCancelled": {f"order:{o['id']}" for o in facts.orders if o["state"] == "cancelled"},
        "UserOnboarded": {f"user:{id_}" for id_ in _onboarded(facts)},
    }
    offending = []
    for event, wanted in causes.items():
        offending += _differences(f"{event} of", wanted, _subjects(facts, event))
    return offending, ", ".join(f"{len(wanted)} {event}" for event, wanted in causes.items())


def _users(facts: Facts) -> Verdict:
    wanted = _onboarded(facts)
    there = {row["id"] for row in facts.users}
    offending = [f"user {id_} was onboarded and is not there" for id_ in sorted(wanted - there)]
    offending += [f"user {id_} is there and was not onboarded" for id_ in sorted(there - wanted)]
    return offending, f"{len(wanted)} users, {len(facts.onboardings) - len(wanted)} not welcome"


def _outbox(facts: Facts) -> Verdict:
    offending = [f"{facts.outbox.waiting} messages wait"] if facts.outbox.waiting else []
    offending += [f"key {key} is blocked" for key in facts.outbox.blocked]
    offending += [f"message {id_} is dead" for id_ in facts.outbox.dead]
    return offending, "0 rows"


def _handled(facts: Facts) -> Verdict:
    times = Counter(row["message_id"] for row in facts.noted)
    offending = [f"message {id_} took effect {n} times" for id_, n in times.items() if n > 1]
    if not facts.published == facts.outbox.handled == len(facts.noted):
        offending.append(
            f"{facts.published} published, {facts.outbox.handled} in the inbox, "
            f"{len(facts.noted)} took effect"
        )
    deliveries = facts.outbox.handled + facts.duplicates
    return offending, (
        f"{facts.published} messages, {facts.outbox.handled} handled "
        f"({deliveries} deliveries, {facts.duplicates} duplicates dropped)"
    )


def _kills(kills: Sequence[Kill], wanted: int) -> Check:
    in_flight = sum(kill.in_flight > 0 for kill in kills)
    return Check(
        "every kill was made, at least half with work in flight",
        ok=len(kills) == wanted and 2 * in_flight >= wanted,
        detail=f"{len(kills)} of {wanted} kills, {in_flight} with work in flight",
    )


def _onboarded(facts: Facts) -> set[str]:
    return {id_ for id_, saga in facts.onboardings.items() if saga.state == "completed"}


def _subjects(facts: Facts, event: str) -> list[str]:
    return [row["subject"] for row in facts.noted if row["event"] == event]


def _differences(what: str, wanted: Iterable[str], found: Sequence[str]) -> list[str]:
    """Each that is missing, too many, or uncalled for."""
    times = Counter(found)
    missing = [f"{what} {one}: never" for one in sorted(set(wanted) - times.keys())]
    more = [f"{what} {one}: {n} times" for one, n in sorted(times.items()) if n > 1]
    wrong = [f"{what} {one}: without cause" for one in sorted(times.keys() - set(wanted))]
    return missing + more + wrong
