"""What the shop's handlers do: note each event, and count each confirmed order for its customer.

Both would go wrong visibly if a message took effect twice; that it does not is the inbox's work.
"""

from __future__ import annotations

from sqlalchemy import update

from outbox_saga.handler_context import HandlerContext
from outbox_saga.service import Service
from outbox_saga_relay.demo.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderEvent,
    OrderPlaced,
    OrderRefused,
    UserOnboarded,
)
from outbox_saga_relay.demo.tables import Noted, User

LEDGER = "ledger"
JOURNAL = "journal"


async def confirmed(handle: HandlerContext[OrderConfirmed]) -> None:
    """Note it, and add it to what the customer has ordered so far."""
    message = handle.message
    handle.session.add(_noted(handle, f"order:{message.order_id}"))
    await handle.session.execute(
        update(User)
        .where(User.id == message.customer_id)
        .values(
            confirmed_orders=User.confirmed_orders + 1,
            spent_cents=User.spent_cents + message.total_cents,
        )
        .execution_options(synchronize_session=False)
    )


async def order_event(handle: HandlerContext[OrderEvent]) -> None:
    """Note it."""
    handle.session.add(_noted(handle, f"order:{handle.message.order_id}"))


async def onboarded(handle: HandlerContext[UserOnboarded]) -> None:
    """Note it."""
    handle.session.add(_noted(handle, f"user:{handle.message.user_id}"))


def register(service: Service) -> None:
    """Every event of the shop has exactly one consumer: handled messages can be counted."""
    service.on(OrderConfirmed, consumer=LEDGER)(confirmed)
    for event in (OrderPlaced, OrderRefused, OrderCancelled):
        service.on(event, consumer=JOURNAL)(order_event)
    service.on(UserOnboarded, consumer=JOURNAL)(onboarded)


def _noted(
    handle: HandlerContext[OrderConfirmed]
    | HandlerContext[OrderEvent]
    | HandlerContext[UserOnboarded],
    subject: str,
) -> Noted:
    envelope = handle.envelope
    return Noted(message_id=str(envelope.id), event=envelope.type, subject=subject)
