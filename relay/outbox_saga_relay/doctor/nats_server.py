"""NATS: the server and the account, as far as a client is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from outbox_saga.errors import BrokerUnavailable
from outbox_saga_relay.doctor.cases import NatsCase
from outbox_saga_relay.doctor.findings import CannotLook, Check, Found

_OLDEST = (2, 10)
# What our own headers need beside the user's: ids, names and a key, percent-encoded
OUR_HEADERS = 8 * 1024


def version(case: NatsCase) -> Iterator[Found]:
    """The server knows what we use of JetStream."""
    if case.version < _OLDEST:
        yield Found(
            "error",
            f"NATS {'.'.join(map(str, case.version))}: consumers of several topics came with 2.10",
            "upgrade the server to 2.10 or newer",
        )


def jetstream(case: NatsCase) -> Iterator[Found]:
    """JetStream is on, for this account, and has room."""
    account = case.account
    if isinstance(account, BrokerUnavailable):
        if account.code == "no_jetstream":
            yield Found(
                "error", str(account), "switch JetStream on: `jetstream {}` in the configuration"
            )
            return
        raise CannotLook(
            f"the account could not be looked at ({account.code})",
            "permit this user $JS.API.INFO",
        )
    limits = account.get("limits", {})
    for used, limit in (("storage", "max_storage"), ("memory", "max_memory")):
        most = limits.get(limit, -1)
        if most > 0 and account.get(used, 0) >= case.limits.full * most:
            yield Found(
                "warning",
                f"{account[used]} of {most} bytes of {used} of this account are in use; when "
                "they are, messages are refused and wait in the outbox",
                f"raise {limit} of the account, or let streams forget what was consumed",
            )


def max_payload(case: NatsCase) -> Iterator[Found]:
    """The largest message that may be published here fits."""
    from outbox_saga.brokers.nats_publishing import largest

    needed = case.limits.body + case.limits.headers + OUR_HEADERS
    if largest(case.max_payload) < needed:
        yield Found(
            "error",
            f"max_payload is {case.max_payload} bytes, and a message may have {needed} with its "
            "headers: what is larger becomes a dead letter and parks its key",
            "raise max_payload in the server's configuration, or lower max_body where messages "
            "are published",
        )


CHECKS: Final[tuple[Check[NatsCase], ...]] = (
    Check(
        "nats.version",
        "the server's version",
        "An older server does not know what we ask of it.",
        ("error",),
        version,
    ),
    Check(
        "nats.jetstream",
        "whether JetStream is on, and how full the account is",
        "Without it nothing is acknowledged; without room nothing is taken.",
        ("error", "warning"),
        jetstream,
    ),
    Check(
        "nats.max_payload",
        "`max_payload` against the largest message that may be published",
        "The server refuses for good what the outbox has taken.",
        ("error",),
        max_payload,
    ),
)
