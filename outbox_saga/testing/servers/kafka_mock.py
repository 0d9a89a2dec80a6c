"""A program: librdkafka's mock Kafka cluster, three brokers over real TCP, in memory.

    python -P kafka_mock.py FILE        writes "host:port,host:port,..." to FILE when it is up

(-P: this folder's own `redis.py`, `nats.py` and so on must not be found as packages.)
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from confluent_kafka import Producer


def main() -> None:
    """Keep the cluster, which lives as long as the client that made it, until a signal."""
    owner = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "mock", "log_level": 0})
    brokers = owner.list_topics(timeout=10).brokers.values()
    announced = Path(sys.argv[1])
    unfinished = announced.with_suffix(".new")
    unfinished.write_text(",".join(f"{broker.host}:{broker.port}" for broker in brokers))
    unfinished.rename(announced)
    signal.pause()


if __name__ == "__main__":
    main()
