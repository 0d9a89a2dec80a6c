"""Ids made by the client: a promoted standby re-uses sequence values, never these."""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from uuid import UUID, SafeUUID, uuid5

_NAMESPACE = UUID(
    "5f0d3b0e-6f3c-5a53-9a0e-6d6f7574626f"
)  # ours; fixed for ever: keys derive from it

_new, _set = object.__new__, object.__setattr__
_VERSION_7 = 0x7000 << 64 | 0x8000_0000_0000_0000  # with the variant
_lock = threading.Lock()
_last = 0


def _forget_after_fork() -> None:
    global _lock  # noqa: PLW0603  # one clock a process
    _lock = threading.Lock()  # a fork may have copied it held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def new_id() -> UUID:
    """A UUIDv7, greater than every earlier one of this process (RFC 9562, method 3.

    Sub-millisecond clock).
    """
    global _last  # noqa: PLW0603  # one clock a process
    # 60 bits of time: 48 of milliseconds and 12 of the millisecond's fraction
    tick = (time.time_ns() << 12) // 1_000_000
    with _lock:
        if tick <= _last:
            tick = _last + 1
        _last = tick
    random = int.from_bytes(os.urandom(8), "big") & 0x3FFF_FFFF_FFFF_FFFF
    id_ = _new(UUID)
    # as UUID's constructor does it, which first looks at five other ways to write one
    _set(id_, "int", (tick >> 12 << 80) | (tick & 0xFFF) << 64 | _VERSION_7 | random)
    _set(id_, "is_safe", SafeUUID.unknown)
    return id_


def lowest_id(moment: dt.datetime) -> UUID:
    """All ids that `new_id` made before this moment are lower, by the clock of who made them.

    Before 1970 it made none.
    """
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)


def saga_id(source: str, saga: str, business_key: str) -> UUID:
    """The same id for the same service, saga and business key: starting twice is one instance."""
    return uuid5(_NAMESPACE, f"saga\x1f{source}\x1f{saga}\x1f{business_key}")


def idempotency_key(instance: UUID, step: str, direction: str, generation: int) -> UUID:
    """The same key for every attempt of one effect.

    Only an operator's decision makes a new generation.
    """
    return uuid5(_NAMESPACE, f"effect\x1f{instance}\x1f{step}\x1f{direction}\x1f{generation}")


def handler_key(consumer: str, message_id: UUID) -> UUID:
    """The same key for every attempt of one consumer at one message, for its calls outside."""
    return uuid5(_NAMESPACE, f"handler\x1f{consumer}\x1f{message_id}")


def altered_id(message_id: UUID, digest: bytes) -> UUID:
    """The id of a body that came under an id which another body had before; always the same."""
    return uuid5(_NAMESPACE, f"altered\x1f{message_id}\x1f{digest.hex()}")


def event_id(message_id: UUID, instance: UUID) -> UUID:
    """The id of an event as it waits for one saga instance alone; always the same."""
    return uuid5(_NAMESPACE, f"event\x1f{message_id}\x1f{instance}")
