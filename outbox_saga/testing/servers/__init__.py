"""Private, real database and broker servers for tests and the demo.

Every server started here listens on a free loopback port only, keeps its data in a temporary
directory of its own, and is gone, data included, when the process that started it is gone,
however that ended. Nothing here needs pytest, Docker or root; each is used if it is there.

    with choose(Postgres18) as server:
        url = server.create_database()
        server.kill()                   # SIGKILL, as a crash of the machine would
        server.start()                  # same port, same data

Reading order: `server` (what a server offers), `place` (where one runs: elsewhere, as our child
process, in a container), `choice` (which of these), then one file a service.
"""

from outbox_saga.testing.servers.choice import SERVERS, Services, choose, environment_variable
from outbox_saga.testing.servers.database import DatabaseServer
from outbox_saga.testing.servers.kafka import Kafka
from outbox_saga.testing.servers.mariadb import MariaDB
from outbox_saga.testing.servers.nats import Nats
from outbox_saga.testing.servers.pgbouncer import PgBouncer
from outbox_saga.testing.servers.place import ServerFailed, ServerUnavailable, Source
from outbox_saga.testing.servers.postgres import Postgres, Postgres15, Postgres18
from outbox_saga.testing.servers.rabbitmq import RabbitMQ
from outbox_saga.testing.servers.redis import Redis
from outbox_saga.testing.servers.server import Server

__all__ = [
    "SERVERS",
    "DatabaseServer",
    "Kafka",
    "MariaDB",
    "Nats",
    "PgBouncer",
    "Postgres",
    "Postgres15",
    "Postgres18",
    "RabbitMQ",
    "Redis",
    "Server",
    "ServerFailed",
    "ServerUnavailable",
    "Services",
    "Source",
    "choose",
    "environment_variable",
]
