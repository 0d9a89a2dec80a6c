"""NATS JetStream: `nats://[user:pass@]host:port[,host2:port…][?option=value&…]`, or `tls://…`.

Options, with their defaults:

- `stream=OUTBOX`: the stream that stores the messages.
- `prefix=outbox`: a topic `orders` is the subject `outbox.orders`.
- `create=0`: 1 creates the stream when it is missing (file storage, limits retention,
  discard=new, no limits), with `replicas=1` and `dedup_window=120` seconds, which are refused
  without it.
- `timeout=5`: seconds for connecting, for a batch to be acknowledged, for an API call.
- `ack_wait=30`: seconds after which a message whose consumer vanished comes again.
- `grace=20`: seconds that handlers get to finish when a consumer stops.

**Publishing.** The message's id is its `Nats-Msg-Id`, so the stream stores a repeat within the
deduplication window once. Beyond the window it stores it again, and the inbox drops it.

**Consuming.** A durable pull consumer for each consumer name, shared by all its processes. The
messages of one key are handled one after another, in stream order, within one process; a message
sent back is not overtaken by later ones of its key that the same process gets. Across processes,
and after a connection was lost, JetStream gives no order of its own.

**Durability.** The default server flushes to disk every two minutes: an acknowledged message
survives a crash of the server process, but losing power on all replicas at once can lose it.
`sync_interval: always`, or replicas in places that do not fail together, close that gap.
"""

from __future__ import annotations

from typing import Final

from outbox_saga.brokers.contract import (
    Capabilities,
    Consuming,
    Publisher,
    Subscriber,
    Subscription,
)
from outbox_saga.brokers.nats_consuming import NatsSubscriber
from outbox_saga.brokers.nats_publishing import NatsPublisher
from outbox_saga.brokers.nats_settings import NatsSettings

CAPABILITIES: Final = Capabilities(
    deduplicates=True,  # within the stream's window
    unheard="kept",
    consuming=Consuming(settles="each", key_order="process", over_topics=True),
)


def publisher(url: str) -> Publisher:
    """A publisher that is not connected yet; ConfigurationError for what cannot work."""
    return NatsPublisher(NatsSettings.parse(url))


def subscriber(url: str, subscription: Subscription) -> Subscriber:
    """A subscriber that is not connected yet; ConfigurationError for what cannot work."""
    return NatsSubscriber(NatsSettings.parse(url), subscription)
