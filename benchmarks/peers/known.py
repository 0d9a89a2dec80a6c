"""Which peers there are, what each needs, and the settings that are tried of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another outbox relay.

    Args:
        name: On PyPI.
        script: In this package.
        packages: Pinned; what it is measured with.
        python: The least version of Python it runs on.
        at_once: Settings that are tried with a broker that costs nothing.
        sleeping: The same, with a broker that takes a while for each message.
        promises: What it promises of the order of a key.
        tried: Rows of a trial of settings, without and with a broker that takes a while; the
            slower ones get fewer, which is no disadvantage of theirs.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    python: tuple[int, int]
    at_once: Sequence[Settings]
    sleeping: Sequence[Settings]
    promises: str
    tried: tuple[int, int] = (40_000, 40_000)


PEERS = (
    Peer(
        "txoutbox",
        "txoutbox_drain.py",
        ("txoutbox==0.2.2", "asyncpg==0.32.0"),
        (3, 11),
        at_once=(
            {"batch_size": 500, "concurrency": 500},
            {"batch_size": 1000, "concurrency": 1000},
            {"batch_size": 2000, "concurrency": 2000},
            {"batch_size": 2000, "concurrency": 2000, "strict_ordering": False},
            {"batch_size": 2000, "concurrency": 2000, "delete_on_ack": False},
        ),
        sleeping=(
            {"batch_size": 2000, "concurrency": 2000},
            {"batch_size": 5000, "concurrency": 5000},
            {"batch_size": 10000, "concurrency": 10000},
            {"batch_size": 20000, "concurrency": 20000},
            {"batch_size": 10000, "concurrency": 10000, "strict_ordering": False},
        ),
        promises="order of a key by row id, kept over retries while strict_ordering is on",
    ),
    Peer(
        "nats-outbox",
        "nats_outbox_drain.py",
        ("nats-outbox==0.1.0", "sqlalchemy==2.1.9", "asyncpg==0.32.0"),
        (3, 12),
        at_once=(
            {"batch_size": 500},
            {"batch_size": 1000},
            {"batch_size": 1000, "relays": 2},
        ),
        sleeping=(
            {"batch_size": 20, "relays": 64},
            {"batch_size": 100, "relays": 64},
        ),
        promises="none with several relays; by time of writing with one",
        tried=(20_000, 10_000),
    ),
    Peer(
        "faststream-outbox",
        "faststream_outbox_drain.py",
        ("faststream-outbox==0.19.0", "sqlalchemy==2.1.9", "asyncpg==0.32.0"),
        (3, 11),
        at_once=(
            {"max_workers": 2, "fetch_batch_size": 500, "terminal_flush_batch_size": 250},
            {"max_workers": 4, "fetch_batch_size": 1000, "terminal_flush_batch_size": 250},
            {"max_workers": 8, "fetch_batch_size": 2000, "terminal_flush_batch_size": 250},
        ),
        sleeping=(
            {"max_workers": 40, "fetch_batch_size": 2000, "terminal_flush_batch_size": 50},
            {"max_workers": 64, "fetch_batch_size": 2000, "terminal_flush_batch_size": 50},
        ),
        promises="none",
        tried=(20_000, 10_000),
    ),
    Peer(
        "omni-box",
        "omni_box_drain.py",
        ("omni-box==0.3.1", "sqlalchemy[asyncio]==2.1.9", "asyncpg==0.32.0"),
        (3, 12),
        at_once=({"batch_size": 500}, {"batch_size": 500, "workers": 2}),
        sleeping=({"batch_size": 20, "workers": 32}, {"batch_size": 20, "workers": 64}),
        promises="order of a key by time of writing; one row of a key in a transaction",
        tried=(10_000, 5_000),
    ),
    Peer(
        "pactix",
        "pactix_drain.py",
        ("pactix==0.2.0", "sqlalchemy[asyncio]==2.1.9", "asyncpg==0.32.0"),
        (3, 12),
        at_once=({"batch_size": 100}, {"batch_size": 100, "workers": 4}),
        sleeping=({"batch_size": 20, "workers": 32}, {"batch_size": 20, "workers": 64}),
        promises="order of a key within a type of event, by time of writing",
        tried=(2_000, 2_000),
    ),
)
