"""Kafka: librdkafka's mock cluster, or a real broker by URL or in a container."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from outbox_saga.testing.servers.container import Container
from outbox_saga.testing.servers.place import Place, ServerUnavailable
from outbox_saga.testing.servers.process import LocalProcess
from outbox_saga.testing.servers.server import Server


class Kafka(Server):
    """A Kafka cluster; its `url` is the list of bootstrap servers.

    From a wheel it is the mock cluster, which keeps everything in memory: after `kill` or `stop`
    a start is a new, empty cluster on other ports, the one exception to what `Server` promises.
    """

    name = "kafka"

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        """The mock cluster in a process of its own."""
        if importlib.util.find_spec("confluent_kafka") is None:
            raise ServerUnavailable("no mock Kafka cluster (the wheel confluent-kafka has one)")
        return _MockCluster("wheel", durable=durable)

    @classmethod
    def container(cls, *, durable: bool) -> Place:
        """The official image: one broker, which tells its clients the port it has out here."""
        place = Container("apache/kafka:4.1.0", 9092)
        place.environment = {
            "KAFKA_NODE_ID": "1",
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{place.port}",
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        }
        return place

    def private_url(self) -> str:
        """Every broker that is known."""
        if isinstance(self.place, _MockCluster):
            return self.place.brokers()
        return f"{self.place.host}:{self.place.port}"

    def probe(self, patience: float = 5) -> None:
        """An ApiVersions request to the first broker, and any answer to it."""
        host, _, port = self.url.split(",")[0].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=patience) as connection:
            request = bytes.fromhex("0012 0000 00000001 ffff")  # key 18, version 0, id 1, no name
            connection.sendall(len(request).to_bytes(4, "big") + request)
            answer = connection.recv(8, socket.MSG_WAITALL)
            if answer[4:] != bytes.fromhex("00000001"):
                raise ConnectionError(f"expected an answer to request 1, got {answer!r}")


class _MockCluster(LocalProcess):
    @property
    def announced(self) -> Path:
        return self.directory / "brokers"

    def command(self) -> Sequence[str]:
        self.announced.unlink(missing_ok=True)
        program = str(Path(__file__).with_name("kafka_mock.py"))
        return [sys.executable, "-P", program, str(self.announced)]

    def brokers(self) -> str:
        return self.announced.read_text(encoding="ascii")
