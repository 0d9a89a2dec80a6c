"""RabbitMQ, from the system's package: no wheel brings it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from outbox_saga.testing.servers.container import Container
from outbox_saga.testing.servers.place import Place, ServerUnavailable, free_port
from outbox_saga.testing.servers.process import LocalProcess
from outbox_saga.testing.servers.server import Server


class RabbitMQ(Server):
    """A RabbitMQ node of its own cluster; durable queues survive `kill`."""

    name = "rabbitmq"

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        """A private node.

        Debian's script on the path insists on being root or rabbitmq; the one behind it does not.
        """
        debian = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        program = str(debian) if debian.exists() else shutil.which("rabbitmq-server")
        if program is None:
            raise ServerUnavailable("no rabbitmq-server on this machine (package rabbitmq-server)")
        return _RabbitMQProcess(program, durable=durable)

    @classmethod
    def container(cls, *, durable: bool) -> Place:
        """The official image."""
        return Container("rabbitmq:4", 5672)

    def private_url(self) -> str:
        """As guest, who may connect from this machine only."""
        return f"amqp://guest:guest@{self.place.host}:{self.place.port}/"

    def probe(self, patience: float = 5) -> None:
        """The protocol header, and the server's Connection.Start in answer."""
        url = urlsplit(self.url)
        with socket.create_connection(
            (url.hostname, url.port or 5672), timeout=patience
        ) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            answer = connection.recv(11, socket.MSG_WAITALL)
            if answer[:1] != b"\x01" or answer[7:] != b"\x00\x0a\x00\x0a":
                raise ConnectionError(f"expected Connection.Start, got {answer!r}")


class _RabbitMQProcess(LocalProcess):
    def __init__(self, program: str, *, durable: bool) -> None:
        super().__init__("path", durable=durable)
        self.program = program
        self.distribution_port = 0

    def prepare(self) -> None:
        self.distribution_port = free_port()
        (self.directory / "plugins").write_text("[].\n")

    def command(self) -> Sequence[str]:
        return [self.program, "-noinput"]

    def environment(self) -> Mapping[str, str]:
        return {
            # With "-noinput": the script becomes the node, instead of staying as its parent.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "none"),
            # Without epmd, which would outlive us and be shared with other nodes of the machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-start_epmd false -erl_epmd_port {self.distribution_port}"
                " -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }
