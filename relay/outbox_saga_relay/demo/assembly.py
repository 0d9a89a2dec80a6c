"""The shop in one object: its sagas, its handlers, its database and its broker."""

from __future__ import annotations

from dataclasses import dataclass

from outbox_saga.saga import Saga
from outbox_saga.service import Service
from outbox_saga_relay.demo import bookkeeping
from outbox_saga_relay.demo.client import ProviderClient
from outbox_saga_relay.demo.faults import Faults
from outbox_saga_relay.demo.onboarding import Onboarding, UserData
from outbox_saga_relay.demo.ordering import OrderData, OrderProcessing
from outbox_saga_relay.demo.settings import Settings


@dataclass(frozen=True, slots=True)
class Shop:
    """The service, and the two sagas that are started in its transactions."""

    service: Service
    provider: ProviderClient
    onboarding: Saga[UserData]
    ordering: Saga[OrderData]

    async def close(self) -> None:
        """Give all connections back."""
        await self.provider.close()
        await self.service.close()


def build(settings: Settings, *, faults: Faults | None = None) -> Shop:
    """The shop with these settings; nothing connects yet.

    Args:
        settings: Of its process.
        faults: Instead of those that the settings' seed decides.
    """
    provider = ProviderClient(settings.provider_url)
    onboarding = Onboarding(provider).saga()
    ordering = OrderProcessing(provider, faults or Faults(settings.faults)).saga()
    service = Service(
        "shop",
        database=settings.database_url,
        broker=settings.broker,
        sagas=[onboarding, ordering],
    )
    bookkeeping.register(service)
    return Shop(service, provider, onboarding, ordering)
