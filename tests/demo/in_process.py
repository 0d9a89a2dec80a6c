"""The shop and its provider in the test's own process, with faults that the test chooses."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from outbox_saga_migrations import upgrade
from outbox_saga_relay.demo.assembly import Shop, build
from outbox_saga_relay.demo.faults import Disturbance, Faults, Mishap
from outbox_saga_relay.demo.ledger import Ledger
from outbox_saga_relay.demo.provider import Provider
from outbox_saga_relay.demo.settings import Settings
from outbox_saga_relay.demo.tables import ShopTable


@dataclass(frozen=True, slots=True)
class Planned(Faults):
    """Faults that a test chooses instead of a seed.

    Args:
        first: What happens to the first arrival of each request.
        no_to: The kinds of request that get a definite no.
        order: What goes wrong with writing an order down.
    """

    seed: int | None = None
    first: Disturbance | None = None
    no_to: frozenset[str] = frozenset()
    order: Mishap | None = None

    def declines(self, what: str, key: str) -> bool:
        return what in self.no_to

    def disturbance(self, key: str, arrival: int) -> Disturbance | None:
        return self.first if arrival == 1 else None

    def mishap(self, order_id: int, attempt: int) -> Mishap | None:
        return None if self.order == "error" and attempt > 1 else self.order


class RunningProvider:
    """A provider in a thread; its faults may be chosen anew at any time."""

    def __init__(self, path: Path) -> None:
        self._ledger = Ledger(path)
        self._provider = Provider(0, self._ledger, Planned(), late_by=60)
        self._thread = threading.Thread(
            target=self._provider.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        self.url = self._provider.url

    def plan(self, faults: Planned) -> None:
        """From now on this goes wrong."""
        self._provider.faults = faults

    def post(
        self, path: str, body: Any, *, key: str | None = "k1", timeout: float = 5.0
    ) -> httpx2.Response:
        """One request of a caller that waits for so many seconds."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return httpx2.post(
            f"{self.url}{path}", json=body, headers=headers, timeout=timeout, trust_env=False
        )

    def books(self) -> dict[str, list[dict[str, Any]]]:
        """Its ledger."""
        books: dict[str, list[dict[str, Any]]] = httpx2.get(
            f"{self.url}/ledger", trust_env=False
        ).json()
        return books

    def close(self) -> None:
        """It ends; its ledger stays."""
        self._provider.closing.set()
        self._provider.shutdown()
        self._thread.join()
        self._provider.server_close()
        self._ledger.close()


def open_shop(database_url: str, provider: RunningProvider, faults: Planned) -> Shop:
    """A shop with its tables, and nothing on the shelf."""
    provider.plan(faults)
    shop = build(Settings(database_url, "local", provider.url), faults=faults)
    with shop.service.database.begin() as connection:
        ShopTable.metadata.create_all(connection)
        upgrade(connection)
    return shop
