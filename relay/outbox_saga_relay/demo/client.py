"""How the shop calls its provider: one idempotency key per step, three kinds of answer.

2xx is Success, a definite no (402, 422) is Failure, and anything else is an exception: the
outcome is unknown, and the saga asks again under the same key.
"""

from __future__ import annotations

from typing import Any, Literal

import httpx2

from outbox_saga.results import Failure, Result, Success
from outbox_saga_relay.demo.pace import ANSWER_WITHIN

MailKind = Literal["welcome", "goodbye", "confirmation", "cancellation"]

_DEFINITE_NO = frozenset({402, 422})


class ProviderFailed(Exception):
    """The provider answered with something that is neither yes nor no."""


class ProviderClient:
    """Calls the provider; connects on first use, from the event loop it is then used in.

    Args:
        url: Of the provider.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._http: httpx2.AsyncClient | None = None

    async def charge(
        self, *, key: str, order_id: int, customer_id: str, amount_cents: int
    ) -> Result[str, str]:
        """The id of the charge, or why the card was declined."""
        return await self._post(
            "/charges",
            key,
            {"order": order_id, "customer": customer_id, "amount_cents": amount_cents},
        )

    async def refund(self, *, key: str, payment_id: str) -> Result[str, str]:
        """The id of the refund of that whole charge."""
        return await self._post("/refunds", key, {"charge": payment_id})

    async def mail(self, *, key: str, kind: MailKind, to: str, about: str) -> Result[str, str]:
        """The id of the mail, or why nobody can be reached there."""
        return await self._post("/mails", key, {"kind": kind, "to": to, "about": about})

    async def close(self) -> None:
        """Give the connections back."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _post(self, path: str, key: str, body: dict[str, Any]) -> Result[str, str]:
        if self._http is None:
            self._http = httpx2.AsyncClient(
                base_url=self._url, timeout=ANSWER_WITHIN, trust_env=False
            )
        answer = await self._http.post(path, json=body, headers={"Idempotency-Key": key})
        if answer.is_success:
            return Success(str(answer.json()["id"]))
        said = str(answer.json().get("error", answer.status_code))
        if answer.status_code in _DEFINITE_NO:
            return Failure(said)
        raise ProviderFailed(f"{path} answered {answer.status_code}: {said}")
