"""NATS: the stream that stores our messages, and the consumers that read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from outbox_saga.errors import BrokerUnavailable
from outbox_saga_relay.doctor.cases import NatsCase
from outbox_saga_relay.doctor.findings import CannotLook, Check, Found
from outbox_saga_relay.doctor.nats_server import OUR_HEADERS
from outbox_saga_relay.times import spoken

_NANOSECONDS = 1_000_000_000
_MENDS = {
    "max_age": "set max_age to 0, or to longer than the slowest consumer may be away",
    "discard=old": "set discard=new: what finds no room then waits in the outbox",
    "max_msgs_per_subject": "set max_msgs_per_subject to -1, or discard_new_per_subject too",
    "storage=memory": "make the stream anew with storage=file",
    "retention=interest": "make the stream anew with retention=limits or workqueue",
    "no_ack": "set no_ack to false",
}


def stream(case: NatsCase) -> Iterator[Found]:
    """There is a stream of this name, and it takes messages."""
    name = case.settings.stream
    if isinstance(case.stream, BrokerUnavailable):
        if case.stream.code == "no_stream":
            make = case.settings.create
            yield Found(
                "info" if make else "error",
                f"there is no stream {name}"
                + (": the first relay or consumer makes it (create=1)" if make else ""),
                "nothing" if make else "create it, or put create=1 into the broker's URL",
            )
            return
        raise CannotLook(
            f"the stream {name} could not be looked at ({case.stream.code})",
            f"permit this user $JS.API.STREAM.INFO.{name}",
        )
    for setting in ("sealed", "mirror"):
        if case.config.get(setting):
            yield Found(
                "error",
                f"the stream {name} takes no messages ({setting})",
                "give the name of the stream that does: ?stream=NAME",
            )


def subjects(case: NatsCase) -> Iterator[Found]:
    """The stream takes every topic."""
    from outbox_saga.brokers.nats_stream import covers

    taken: list[str] = case.config.get("subjects") or []
    everything = f"{case.settings.prefix}.>"
    if any(covers(subject, everything) for subject in taken):
        return
    missing = [
        topic
        for topic in case.topics
        if not any(covers(subject, case.settings.subject(topic)) for subject in taken)
    ]
    shown = ", ".join(taken) or "nothing"
    if missing or not any(subject.startswith(f"{case.settings.prefix}.") for subject in taken):
        which = ", ".join(missing) if missing else "any topic"
        yield Found(
            "error",
            f"the stream {case.settings.stream} takes {shown}, and so not {which}: such messages "
            "wait in the outbox",
            f"add {everything} to the subjects of the stream",
        )
    else:
        yield Found(
            "warning",
            f"the stream {case.settings.stream} takes {shown}: messages of other topics wait in "
            "the outbox",
            f"add {everything} to the subjects of the stream, unless those are all topics",
        )


def losses(case: NatsCase) -> Iterator[Found]:
    """What was acknowledged is kept until it is consumed."""
    from outbox_saga.brokers.nats_stream import what_loses_messages

    for setting in what_loses_messages(dict(case.config)):
        mend = next(do for start, do in _MENDS.items() if setting.startswith(start))
        yield Found(
            "error",
            f"the stream {case.settings.stream} drops messages that it acknowledged: {setting}",
            mend,
        )


def retention(case: NatsCase) -> Iterator[Found]:
    """Each consumer gets every message."""
    if case.config.get("retention") == "workqueue":
        yield Found(
            "info",
            f"the stream {case.settings.stream} is a work queue: a message is gone once one "
            "consumer has acknowledged it, and two consumers of one topic are refused",
            "nothing where each topic has one consumer; else make the stream with "
            "retention=limits",
        )


def room(case: NatsCase) -> Iterator[Found]:
    """The stream has room."""
    for used, limit in (("messages", "max_msgs"), ("bytes", "max_bytes")):
        most = case.config.get(limit, -1)
        if most > 0 and case.state.get(used, 0) >= case.limits.full * most:
            yield Found(
                "warning",
                f"the stream {case.settings.stream} holds {case.state[used]} of at most {most} "
                f"{used}",
                f"raise {limit}, or let consumers catch up (retention=workqueue removes what "
                "they have acknowledged)",
            )


def copies(case: NatsCase) -> Iterator[Found]:
    """The stream survives the loss of a server, and each copy is there."""
    replicas = case.config.get("num_replicas", 1)
    others = case.cluster.get("replicas") or []
    if replicas == 1:
        clustered = "name" in case.cluster
        yield Found(
            "warning" if clustered else "info",
            f"the stream {case.settings.stream} has one copy, which its server writes to disk "
            "every two minutes unless sync_interval says otherwise (a client cannot see it)",
            "num_replicas=3 in a cluster of servers that do not fail together, or sync_interval: "
            "always on the server",
        )
    for other in others:
        if other.get("offline") or not other.get("current", True):
            yield Found(
                "warning",
                f"the copy of the stream {case.settings.stream} on {other.get('name')} is "
                + ("offline" if other.get("offline") else "behind"),
                "bring that server back: without a majority nothing is acknowledged",
            )


def dedup_window(case: NatsCase) -> Iterator[Found]:
    """A repeat of the relay's comes within the window in which the stream drops it."""
    window = case.config.get("duplicate_window", 0) / _NANOSECONDS
    horizon = case.limits.retry + case.limits.lease + case.settings.timeout
    if window < horizon:
        yield Found(
            "warning",
            f"the stream {case.settings.stream} drops repeats within {spoken(window)}, and the "
            f"relay may send one again after {spoken(horizon)}",
            f"set duplicate_window to {spoken(2 * horizon)} or more; consumers need the inbox "
            "anyway, since an outage outlasts every window",
        )


def message_size(case: NatsCase) -> Iterator[Found]:
    """The stream takes the largest message that may be published here."""
    most = case.config.get("max_msg_size", -1)
    needed = case.limits.body + case.limits.headers + OUR_HEADERS
    if 0 < most < needed:
        yield Found(
            "error",
            f"the stream {case.settings.stream} takes at most {most} bytes, and a message may "
            f"have {needed} with its headers: what is larger becomes a dead letter and parks its "
            "key",
            "set max_msg_size to -1, or lower max_body where messages are published",
        )


def consumers(case: NatsCase) -> Iterator[Found]:
    """Our consumers keep their place, and give no message up."""
    from outbox_saga.brokers.nats_consumer import ACK_POLICY

    for name, info in case.consumers.items():
        if info is None:
            continue  # made when it first runs, as it should be
        if isinstance(info, BrokerUnavailable):
            raise CannotLook(
                f"the consumer {name} could not be looked at ({info.code})",
                f"permit this user $JS.API.CONSUMER.INFO.{case.settings.stream}.>",
            )
        config = info["config"]
        if (policy := config.get("ack_policy", ACK_POLICY)) != ACK_POLICY:
            yield Found(
                "error",
                f"consumer {name} has ack_policy={policy}: messages count as handled before they "
                "are, and so it is refused",
                f"delete it: it is made anew, with ack_policy={ACK_POLICY}, and begins at the "
                "start of the stream; the inbox drops what was handled",
            )
        if config.get("max_deliver", -1) > 0:
            yield Found(
                "error",
                f"consumer {name} gives a message up after {config['max_deliver']} deliveries",
                "set max_deliver to -1",
            )
        if config.get("inactive_threshold", 0) > 0:
            yield Found(
                "error",
                f"consumer {name} is deleted, with its place in the stream, when it is away for "
                f"{spoken(config['inactive_threshold'] / _NANOSECONDS)}",
                "set inactive_threshold to 0",
            )
        if config.get("mem_storage"):
            yield Found(
                "warning",
                f"consumer {name} keeps its place in memory: after a restart of the server it "
                "gets everything again",
                "set mem_storage to false",
            )


CHECKS: Final[tuple[Check[NatsCase], ...]] = (
    Check(
        "nats.stream",
        "whether the stream is there and takes messages",
        "Messages wait in the outbox until it does.",
        ("error", "info"),
        stream,
    ),
    Check(
        "nats.subjects",
        "whether the stream's subjects cover our topics",
        "Messages of other topics wait in the outbox, and their keys with them.",
        ("error", "warning"),
        subjects,
    ),
    Check(
        "nats.losses",
        "limits with discard=old, `max_age`, limits per subject, storage, interest, `no_ack`",
        "The outbox forgets what was acknowledged, and then the stream drops it: nobody has it "
        "any more.",
        ("error",),
        losses,
    ),
    Check(
        "nats.retention",
        "`retention`",
        "A work queue gives each message to one consumer.",
        ("info",),
        retention,
    ),
    Check(
        "nats.room",
        "messages and bytes in the stream against its limits",
        "A full stream refuses; everything then waits in the outbox.",
        ("warning",),
        room,
    ),
    Check(
        "nats.copies",
        "`num_replicas`, and whether each copy is there",
        "Acknowledged messages are lost with the only disk that has them, or with its last two "
        "minutes.",
        ("warning", "info"),
        copies,
    ),
    Check(
        "nats.dedup_window",
        "`duplicate_window` against how long the relay waits between attempts",
        "A repeat that comes later is stored again: consumers without an inbox see it twice.",
        ("warning",),
        dedup_window,
    ),
    Check(
        "nats.message_size",
        "`max_msg_size` against the largest message that may be published",
        "The stream refuses for good what the outbox has taken.",
        ("error",),
        message_size,
    ),
    Check(
        "nats.consumers",
        "`ack_policy`, `max_deliver`, `inactive_threshold` and `mem_storage` of the service's "
        "consumers",
        "A message counts as handled before it is, or is given up; or the consumer's place is "
        "forgotten.",
        ("error", "warning"),
        consumers,
    ),
)
