"""What a NATS URL says: where to connect, as whom, and how topics map to JetStream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from outbox_saga.brokers.urls import BrokerUrl
from outbox_saga.errors import ConfigurationError, MessageRefused
from outbox_saga.messages import check_topic

OPTIONS: Final = (
    "ack_wait",
    "create",
    "dedup_window",
    "grace",
    "prefix",
    "replicas",
    "stream",
    "timeout",
)


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """What a NATS URL says; see `outbox_saga.brokers.nats` for the options."""

    servers: tuple[str, ...]
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    stream: str
    prefix: str
    create: bool
    replicas: int
    dedup_window: float
    timeout: float
    ack_wait: float
    grace: float

    @classmethod
    def parse(cls, url: str) -> NatsSettings:
        """The settings of this URL; raises ConfigurationError for what cannot work."""
        parts = BrokerUrl.parse(url, port=4222, known=OPTIONS)
        if parts.path:
            raise ConfigurationError("a NATS URL has no path; give the stream as ?stream=NAME")
        stream = parts.text("stream", "OUTBOX")
        if len(stream) > 255 or not stream.isprintable() or set(stream) & set(" .*>/\\"):
            raise ConfigurationError(
                f"{stream[:80]!r} is not a stream name: no spaces, dots, '*', '>' or slashes, at "
                "most 255"
            )
        prefix = parts.text("prefix", "outbox")
        try:
            check_topic(prefix)
        except MessageRefused as error:
            raise ConfigurationError(
                f"prefix={prefix[:80]!r} cannot start a subject: {error.reason}"
            ) from None
        create = parts.flag("create", default=False)
        replicas = parts.count("replicas", 1, most=5)
        dedup_window = parts.seconds("dedup_window", 120.0)
        if not create and (unused := {"replicas", "dedup_window"} & parts.options.keys()):
            raise ConfigurationError(
                f"{' and '.join(sorted(unused))} in the broker's URL is for a stream that is made "
                "by create=1; leave it out, and set it on the stream itself"
            )
        return cls(
            servers=tuple(
                f"{parts.scheme}://[{host}]:{port}"
                if ":" in host
                else f"{parts.scheme}://{host}:{port}"
                for host, port in parts.hosts
            ),
            user=parts.user,
            password=parts.password,
            stream=stream,
            prefix=prefix,
            create=create,
            replicas=replicas,
            dedup_window=dedup_window,
            timeout=parts.seconds("timeout", 5.0),
            ack_wait=parts.seconds("ack_wait", 30.0, least=0.5),
            grace=parts.seconds("grace", 20.0),
        )

    def subject(self, topic: str) -> str:
        """Where messages of this topic go."""
        return f"{self.prefix}.{topic}"

    def topic(self, subject: str) -> str:
        """The topic of a message that came on this subject."""
        return subject.removeprefix(f"{self.prefix}.")
