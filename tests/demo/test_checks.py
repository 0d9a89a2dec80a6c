"""The checks: silent about what is right, and each violation named with what offends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from outbox_saga_relay.cli import main
from outbox_saga_relay.demo.checks import Check, check_all
from outbox_saga_relay.demo.driver import Outcome
from outbox_saga_relay.demo.facts import Facts, OutboxEnd, SagaEnd
from outbox_saga_relay.demo.kills import Kill

PLACED, CONFIRMED = "OrderPlaced", "OrderConfirmed"


def note(number: int, event: str, subject: str) -> dict[str, Any]:
    return {"number": number, "message_id": f"m{number}", "event": event, "subject": subject}


def good() -> Facts:
    """Order 1 is completed, 2 was paid for, created, and undone; one user, one not welcome."""
    return Facts(
        products=({"id": 7, "supplied": 10, "stock": 7, "reserved": 0, "sold": 3},),
        users=({"id": "A", "confirmed_orders": 1, "spent_cents": 500},),
        orders=(
            {"id": 1, "customer_id": "A", "total_cents": 500, "state": "created"},
            {"id": 2, "customer_id": "A", "total_cents": 900, "state": "cancelled"},
        ),
        reservations=(
            {"order_id": 1, "product_id": 7, "quantity": 3, "state": "sold"},
            {"order_id": 2, "product_id": 7, "quantity": 4, "state": "released"},
        ),
        requests=(1, 2),
        order_lines=(
            {"order_id": 1, "product_id": 7, "quantity": 3, "amount_cents": 500},
            {"order_id": 2, "product_id": 7, "quantity": 4, "amount_cents": 900},
        ),
        noted=(
            note(1, PLACED, "order:1"),
            note(2, PLACED, "order:2"),
            note(3, CONFIRMED, "order:1"),
            note(4, "OrderCancelled", "order:2"),
            note(5, "OrderRefused", "order:2"),
            note(6, "UserOnboarded", "user:A"),
        ),
        onboardings={
            "A": SagaEnd("sA", "completed", None),
            "B": SagaEnd("sB", "compensated", "nobody there"),
        },
        orderings={
            1: SagaEnd("s1", "completed", None),
            2: SagaEnd("s2", "compensated", "nobody there"),
        },
        outbox=OutboxEnd(waiting=0, blocked=(), dead=(), handled=6),
        ledger={
            "charges": [
                {"id": "c1", "order_id": 1, "customer": "A", "amount_cents": 500},
                {"id": "c2", "order_id": 2, "customer": "A", "amount_cents": 900},
            ],
            "refunds": [{"id": "r2", "charge": "c2", "order_id": 2, "amount_cents": 900}],
            "mails": [{"id": "m", "kind": "confirmation", "recipient": "a", "about": "order:1"}],
        },
        duplicates=2,
        stored_by_broker=None,
    )


def failing(facts: Facts) -> list[Check]:
    return [check for check in check_all(facts, [], kills_wanted=0) if not check.ok]


def test_nothing_is_said_about_what_is_right() -> None:
    assert failing(good()) == []


def in_row(facts: Facts, field: str, index: int, **changes: Any) -> Facts:
    rows = list(getattr(facts, field))
    rows[index] = {**rows[index], **changes}
    changed: dict[str, Any] = {field: tuple(rows)}
    return replace(facts, **changed)


def in_ledger(facts: Facts, kind: str, rows: list[dict[str, Any]]) -> Facts:
    return replace(facts, ledger={**facts.ledger, kind: rows})


STUCK = SagaEnd("s2", "stuck", "refund_payment: gave up")
CHARGES = good().ledger["charges"]
PLANTED: dict[str, tuple[Callable[[Facts], Facts], str]] = {
    "a stuck saga": (
        lambda f: replace(f, orderings={**f.orderings, 2: STUCK}),
        "order 2: saga s2 is stuck (refund_payment: gave up)",
    ),
    "an order without a saga": (
        lambda f: replace(f, requests=(1, 2, 3)),
        "order 3 came in and has no saga",
    ),
    "a completed order that is cancelled": (
        lambda f: in_row(f, "orders", 0, state="cancelled"),
        "order 1 is completed and was not created",
    ),
    "stock from nowhere": (
        lambda f: in_row(f, "products", 0, stock=8),
        "product 7: stock 8 + reserved 0 + sold 3 is not 10",
    ),
    "a reservation left behind": (
        lambda f: in_row(f, "products", 0, stock=3, reserved=4),
        "product 7: 4 still reserved",
    ),
    "sold without an order": (
        lambda f: in_row(f, "products", 0, stock=6, sold=4),
        "product 7: sold 4, in completed orders 3",
    ),
    "a refund that was forgotten": (
        lambda f: in_ledger(f, "refunds", []),
        "order 2: 900 cents net, should be 0",
    ),
    "a card charged twice": (
        lambda f: in_ledger(f, "charges", [*CHARGES, CHARGES[0]]),
        "order 1: charged 2 times",
    ),
    "a charge for an order nobody knows": (
        lambda f: in_ledger(f, "charges", [*CHARGES, {**CHARGES[0], "order_id": 9}]),
        "order 9: 500 cents net, should be 0",
    ),
    "a confirmation that got lost": (
        lambda f: in_row(f, "noted", 2, event="Other"),
        "OrderConfirmed of order:1: never",
    ),
    "a confirmation handled twice": (
        lambda f: replace(f, noted=(*f.noted, f.noted[2])),
        "OrderConfirmed of order:1: 2 times",
    ),
    "a customer counted twice": (
        lambda f: in_row(f, "users", 0, confirmed_orders=2),
        "user A: 2 orders for 500 cents counted, 1 for 500 completed",
    ),
    "an event without a cause": (
        lambda f: in_row(f, "noted", 3, subject="order:1"),
        "OrderCancelled of order:1: without cause",
    ),
    "a user who was not welcome": (
        lambda f: in_row(f, "users", 0, id="B", confirmed_orders=0, spent_cents=0),
        "user B is there and was not onboarded",
    ),
    "a dead letter": (
        lambda f: replace(f, outbox=replace(f.outbox, dead=("m3",))),
        "message m3 is dead",
    ),
    "a message that took effect twice": (
        lambda f: in_row(f, "noted", 1, message_id="m1"),
        "message m1 took effect 2 times",
    ),
    "a message that was not handled": (
        lambda f: replace(f, stored_by_broker=7),
        "7 published, 6 in the inbox, 6 took effect",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_violation_is_named(planted: str) -> None:
    plant, said = PLANTED[planted]
    assert any(said in check.detail for check in failing(plant(good())))


def test_kills_without_work_in_flight_are_not_enough() -> None:
    kills = [Kill("relay", left, "messages in the outbox", 1, 0.5) for left in (1, 0, 0)]
    assert check_all(good(), kills, kills_wanted=3)[-1].ok is False
    assert check_all(good(), kills[:2], kills_wanted=2)[-1].ok is True
    assert check_all(good(), kills[:1], kills_wanted=2)[-1].ok is False


@pytest.mark.parametrize("as_json", [True, False])
def test_a_violation_is_printed_with_its_ids_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    facts = in_ledger(good(), "refunds", [])
    outcome = Outcome(facts, check_all(facts, [], kills_wanted=0), [], 1.5)
    monkeypatch.setattr("outbox_saga_relay.demo.run.carry_out", lambda *_: outcome)
    result = CliRunner().invoke(main, ["demo", "--json"] if as_json else ["demo"])
    assert result.exit_code == 1
    assert "order 2: 900 cents net, should be 0" in result.stdout
    assert "--faults 1" in result.stderr


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 1
    assert "pip install 'outbox-saga[demo]'" in result.stderr
