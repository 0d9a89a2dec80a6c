"""The provider over real HTTP: acts once per key, and is as unreliable as its seed says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from outbox_saga.results import Failure, Success
from outbox_saga_relay.demo.client import ProviderClient, ProviderFailed
from outbox_saga_relay.demo.faults import Disturbance, Faults
from tests.demo.in_process import Planned, RunningProvider

CHARGE = {"order": 7, "customer": "ANATR", "amount_cents": 1250}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningProvider]:
    provider = RunningProvider(tmp_path / "ledger.db")
    yield provider
    provider.close()


def test_a_repeated_request_gets_the_first_answer_and_acts_once(running: RunningProvider) -> None:
    first = running.post("/charges", CHARGE)
    again = running.post("/charges", dict(reversed(CHARGE.items())))
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert first.status_code == 201
    assert [c["amount_cents"] for c in running.books()["charges"]] == [1250]


def test_the_same_key_with_another_request_is_a_conflict_and_does_nothing(
    running: RunningProvider,
) -> None:
    running.post("/charges", CHARGE)
    assert running.post("/charges", {**CHARGE, "amount_cents": 1}).status_code == 409
    assert running.post("/refunds", {"charge": "charge-k1"}).status_code == 409
    assert [c["amount_cents"] for c in running.books()["charges"]] == [1250]
    assert running.books()["refunds"] == []


def test_a_charge_is_refunded_once_under_whatever_keys(running: RunningProvider) -> None:
    charge = running.post("/charges", CHARGE).json()["id"]
    assert running.post("/refunds", {"charge": charge}, key="k2").status_code == 201
    assert running.post("/refunds", {"charge": charge}, key="k2").status_code == 201
    assert running.post("/refunds", {"charge": charge}, key="k3").status_code == 422
    assert running.post("/refunds", {"charge": "none"}, key="k4").status_code == 422
    assert [r["amount_cents"] for r in running.books()["refunds"]] == [1250]


def test_a_declined_card_stays_declined(running: RunningProvider) -> None:
    running.plan(Planned(no_to=frozenset({"charge"})))
    assert running.post("/charges", CHARGE).status_code == 402
    running.plan(Planned())
    assert running.post("/charges", CHARGE).status_code == 402
    assert running.books()["charges"] == []


def test_a_lost_request_did_nothing_and_the_next_one_does_it(running: RunningProvider) -> None:
    running.plan(Planned(first="lose_request"))
    with pytest.raises(httpx2.RemoteProtocolError):
        running.post("/charges", CHARGE)
    assert running.books()["charges"] == []
    assert running.post("/charges", CHARGE).status_code == 201


@pytest.mark.parametrize(
    ("fault", "error"),
    [("lose_reply", httpx2.RemoteProtocolError), ("answer_late", httpx2.ReadTimeout)],
)
def test_a_reply_that_does_not_come_was_acted_on_and_the_next_request_does_not_act_again(
    running: RunningProvider, fault: Disturbance, error: type[Exception]
) -> None:
    running.plan(Planned(first=fault))
    with pytest.raises(error):
        running.post("/charges", CHARGE, timeout=3)
    assert len(running.books()["charges"]) == 1
    assert running.post("/charges", CHARGE).status_code == 201
    assert len(running.books()["charges"]) == 1


def test_what_was_answered_survives_the_provider(running: RunningProvider, tmp_path: Path) -> None:
    first = running.post("/charges", CHARGE).json()
    running.close()
    successor = RunningProvider(tmp_path / "ledger.db")
    try:
        assert successor.post("/charges", CHARGE).json() == first
        assert len(successor.books()["charges"]) == 1
    finally:
        successor.close()


@pytest.mark.parametrize(
    ("path", "body", "key", "status"),
    [
        ("/charges", CHARGE, None, 400),
        ("/charges", [1], "k", 400),
        ("/charges", {"order": 7}, "k", 400),
        ("/charges", {**CHARGE, "amount_cents": -1}, "k", 400),
        ("/elsewhere", CHARGE, "k", 404),
    ],
)
def test_what_is_no_request_is_refused_and_does_nothing(
    running: RunningProvider, path: str, body: Any, key: str | None, status: int
) -> None:
    assert running.post(path, body, key=key).status_code == status
    assert running.books() == {"charges": [], "refunds": [], "mails": []}


async def test_the_client_says_yes_no_or_that_it_does_not_know(running: RunningProvider) -> None:
    client = ProviderClient(running.url)
    paid = await client.charge(key="a", order_id=7, customer_id="ANATR", amount_cents=5)
    assert paid == Success("charge-a")
    assert await client.refund(key="b", payment_id="charge-a") == Success("refund-b")
    assert isinstance(await client.refund(key="c", payment_id="charge-a"), Failure)
    with pytest.raises(ProviderFailed, match="409"):
        await client.charge(key="a", order_id=7, customer_id="ANATR", amount_cents=6)
    running.plan(Planned(first="lose_reply"))
    with pytest.raises(httpx2.TransportError):
        await client.mail(key="d", kind="welcome", to="a@example.org", about="user:A")
    sent = await client.mail(key="d", kind="welcome", to="a@example.org", about="user:A")
    assert sent == Success("mail-d")
    assert len(running.books()["mails"]) == 1
    await client.close()


def test_a_seed_decides_everything_and_no_seed_nothing() -> None:
    def drawn(faults: Faults) -> list[tuple[bool, str | None, str | None]]:
        return [
            (
                faults.declines("charge", f"key-{number}"),
                faults.disturbance(f"key-{number}", 1),
                faults.mishap(number, 1),
            )
            for number in range(400)
        ]

    assert drawn(Faults(5)) == drawn(Faults(5))
    assert drawn(Faults(5)) != drawn(Faults(6))
    assert set(drawn(Faults(None))) == {(False, None, None)}
    declined, disturbances, mishaps = zip(*drawn(Faults(5)), strict=True)
    assert set(declined) == {False, True}
    assert set(disturbances) == {None, "lose_request", "lose_reply", "answer_late"}
    assert set(mishaps) == {None, "error", "refusal"}


def test_a_request_that_comes_often_enough_gets_through() -> None:
    faults = Faults(5)
    assert not any(faults.disturbance(f"key-{number}", 4) for number in range(1000))


@pytest.mark.parametrize("kind", ["refund", "cancellation", "goodbye"])
def test_what_undoes_something_is_never_declined(kind: str) -> None:
    assert not any(Faults(5).declines(kind, f"key-{number}") for number in range(1000))
