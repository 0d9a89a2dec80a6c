"""RabbitMQ, from the system's package: no wheel brings it."""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
        """Log in and open the virtual host, which may still be recovering behind an open port."""
        url = urlsplit(self.url)
        login = f"\0{unquote(url.username or 'guest')}\0{unquote(url.password or 'guest')}"
        host = unquote(url.path.removeprefix("/")) or "/"
        with socket.create_connection((url.hostname, url.port or 5672), timeout=patience) as line:
            line.sendall(b"AMQP\x00\x00\x09\x01")
            _expect(line, _START)
            _send(line, _START_OK, bytes(4), _short("PLAIN"), _long(login), _short("en_US"))
            _expect(line, _TUNE)
            _send(line, _TUNE_OK, struct.pack(">HIH", 1, 131072, 0))
            _send(line, _OPEN, _short(host), bytes(2))
            _expect(line, _OPEN_OK)


# The methods of AMQP 0-9-1 that open a connection: class 10 and a number each.
_START, _START_OK, _TUNE, _TUNE_OK, _OPEN, _OPEN_OK = (10, 11, 30, 31, 40, 41)


def _send(line: socket.socket, method: int, *arguments: bytes) -> None:
    payload = struct.pack(">HH", 10, method) + b"".join(arguments)
    line.sendall(struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce")


def _expect(line: socket.socket, method: int) -> None:
    *_, size = struct.unpack(">BHI", _read(line, 7))
    answer = _read(line, size + 1)
    if answer[:4] != struct.pack(">HH", 10, method):
        raise ConnectionError(f"expected method 10.{method}, got {answer!r}")


def _read(line: socket.socket, size: int) -> bytes:
    data = line.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise ConnectionError(f"the connection ended after {data!r}")
    return data


def _short(text: str) -> bytes:
    return bytes([len(text.encode())]) + text.encode()


def _long(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


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
            # A queue is declared in a log that lies in memory for up to two seconds, unless every
            # write is worth a dump of it: a node that is killed by then has lost the queue, and
            # with it what it had confirmed.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-start_epmd false -erl_epmd_port {self.distribution_port}"
                " -kernel inet_dist_use_interface {127,0,0,1} -mnesia dump_log_write_threshold 1"
            ),
        }
