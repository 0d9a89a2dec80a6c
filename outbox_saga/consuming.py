"""Consuming from a broker: every delivery is answered only after what it came to is committed."""

from __future__ import annotations

import asyncio
import logging

from outbox_saga.brokers import Subscription, open_subscriber
from outbox_saga.brokers.contract import Delivery
from outbox_saga.errors import BrokerUnavailable, HandlerBusy, MessageRefused
from outbox_saga.handling import Handling
from outbox_saga.queries.dialects import brief
from outbox_saga.queries.passing import passes
from outbox_saga.queries.schema import require_tables
from outbox_saga.retries import Retry

logger = logging.getLogger("outbox_saga.service")

REDELIVERY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=60.0)
OUTAGE = Retry(max_attempts=1_000_000, initial=0.2, max_delay=5.0)


async def consume(
    broker: str, subscription: Subscription, handling: Handling, stop: asyncio.Event
) -> None:
    """Handles what the broker delivers to one consumer, until `stop` is set.

    A broker or a database that is away is waited for.
    """
    subscriber = open_subscriber(broker, subscription)
    database = handling.database

    async def handle(delivery: Delivery) -> None:
        await answer(handling, subscription.consumer, delivery)

    stopped = asyncio.create_task(stop.wait())
    outages = 0
    try:
        while not stop.is_set():
            try:
                await database.look(require_tables, database.tables)
                await subscriber.open()
            except Exception as error:
                away = isinstance(error, BrokerUnavailable)
                if not (away or passes(error)):
                    raise
                outages += 1
                told = error if away else brief(error)
                logger.warning("consumer %s: %s", subscription.consumer, told)
                delay = OUTAGE.delay(outages, seed=subscription.consumer)
                await asyncio.wait({stopped}, timeout=delay)
            else:
                await subscriber.run(handle, stop.wait)
                return
    finally:
        stopped.cancel()
        await subscriber.close()


async def answer(handling: Handling, consumer: str, delivery: Delivery) -> None:
    """Acknowledged: the message is handled, or kept by us. Otherwise it is to come again.

    Only one that cannot be kept, because it has no id, is rejected.
    """
    message: object = "that cannot be read"
    try:
        try:
            envelope = delivery.envelope
        except MessageRefused as refused:
            await _answer_unread(handling, consumer, delivery, refused)
            return
        message = envelope.id
        await handling.deliver(envelope, consumer, attempt=delivery.attempt)
    except HandlerBusy as busy:
        delay = REDELIVERY.delay(delivery.attempt, seed=consumer)
        logger.info("consumer %s, message %s: %s", consumer, message, busy)
        await delivery.retry(delay)
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # whatever kept us from it
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # somebody cancelled us
        delay = REDELIVERY.delay(delivery.attempt, seed=consumer)
        logger.warning(
            "consumer %s could neither handle nor keep message %s, delivery %s (%s); again in "
            "%.1f s",
            consumer,
            message,
            delivery.attempt,
            brief(error),
            delay,
        )
        await delivery.retry(delay)
    else:
        await delivery.acknowledge()


async def _answer_unread(
    handling: Handling, consumer: str, delivery: Delivery, refused: MessageRefused
) -> None:
    if await handling.keep_unread(
        consumer, delivery.topic, delivery.headers, delivery.body, refused
    ):
        await delivery.acknowledge()
        return
    logger.error("consumer %s rejects a message that has no id: %s", consumer, refused)
    await delivery.reject(str(refused))
