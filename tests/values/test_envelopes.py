"""Envelopes come back from the outbox and from CloudEvents headers as they went in."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_saga.envelopes import MAX_BODY, Envelope, replayed, seal_body
from outbox_saga.errors import MessageRefused

safe = st.characters(
    exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029"
)  # no surrogates, no controls
lines = st.text(safe, max_size=60)
tokens = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
envelopes = st.builds(
    seal_body,
    st.binary(max_size=200),
    type_=tokens.map(lambda name: f"T{name}"),
    topic=tokens,
    kind=st.sampled_from(["event", "command", "reply"]),
    version=st.integers(1, 10**6),
    content_type=st.sampled_from(["application/octet-stream", "text/plain; charset=utf-8"]),
    key=st.none() | st.text(safe, min_size=1, max_size=60),
    headers=st.none()
    | st.dictionaries(tokens.map(lambda name: f"x{name.lower()}"), lines, max_size=5),
    source=lines,
    correlation_id=st.none() | lines,
    causation_id=st.none() | lines,
)


@given(st.data())
def test_what_the_outbox_keeps_is_the_whole_envelope(data: st.DataObject) -> None:
    envelope = _drawn(data)
    again = Envelope.from_row(
        envelope.id, envelope.topic, envelope.key, envelope.metadata(), envelope.body
    )
    assert again == envelope


def test_what_comes_from_the_outbox_is_as_unchangeable_as_any() -> None:
    made = seal_body(b"{}", type_="T", topic="t", kind="event", version=1)
    read = Envelope.from_row(made.id, made.topic, made.key, made.metadata(), made.body)
    with pytest.raises(FrozenInstanceError):
        read.body = b"[]"  # type: ignore[misc]  # that is the point
    assert type(read) is Envelope
    assert pickle.loads(pickle.dumps(read)) == replace(read) == read


@given(st.data())
def test_what_the_headers_say_is_the_whole_envelope(data: st.DataObject) -> None:
    envelope = _drawn(data)
    headers = envelope.to_headers()
    assert all(name.isascii() and value.isascii() for name, value in headers.items())
    assert not any(c in value for value in headers.values() for c in "\r\n\0")
    assert Envelope.from_headers(envelope.topic, headers, envelope.body) == envelope
    shouted = {name.upper(): value for name, value in headers.items()}
    assert Envelope.from_headers(envelope.topic, shouted, envelope.body) == envelope


def _drawn(data: st.DataObject) -> Envelope:
    return data.draw(envelopes)


def test_the_headers_are_those_of_a_cloud_event_in_binary_mode() -> None:
    envelope = seal_body(
        b"{}", type_="order.placed", topic="orders", key="k 1", source="shop", headers={"a": "b"}
    )
    assert envelope.to_headers() == {
        "a": "b",
        "ce-specversion": "1.0",
        "ce-id": str(envelope.id),
        "ce-type": "order.placed",
        "ce-source": "shop",
        "ce-kind": "event",
        "ce-dataversion": "1",
        "ce-correlationid": str(envelope.id),
        "ce-partitionkey": "k 1",
        "content-type": "application/json",
    }


@pytest.mark.parametrize("path", ["content_type", "source", "correlation_id", "causation_id"])
@pytest.mark.parametrize("bad", ["a\r\nb: c", "nul\0", "\ud800", "x" * 256])
def test_what_would_forge_a_header_or_fail_at_commit_is_refused_at_once(
    path: str, bad: str
) -> None:
    options: dict[str, Any] = {path: bad}
    with pytest.raises(MessageRefused) as refused:
        seal_body(b"x", type_="t", topic="t", **{"content_type": "text/plain", **options})
    assert refused.value.path == path


@pytest.mark.parametrize(
    "key", ["", "x" * 256, "ä" * 128, "a\nb", "a\u2028b", "\ud800", 7], ids=ascii
)
def test_a_key_that_some_database_or_broker_cannot_carry_is_refused(key: Any) -> None:
    with pytest.raises(MessageRefused) as refused:
        seal_body(b"{}", type_="t", topic="t", key=key)
    assert refused.value.path == "key"


@pytest.mark.parametrize("name", ["ce-id", "CE-ID", "nats-msg-id", "Content-Type", "a b", "", "ä"])
def test_a_header_that_would_pass_for_one_of_ours_is_refused(name: str) -> None:
    with pytest.raises(MessageRefused, match="header"):
        seal_body(b"{}", type_="t", topic="t", headers={name: "x"})


def test_a_body_may_be_as_long_as_the_limit_and_not_a_byte_longer() -> None:
    options: dict[str, Any] = {"type_": "t", "topic": "t", "content_type": "text/plain"}
    assert len(seal_body(b"x" * MAX_BODY, **options).body) == MAX_BODY
    with pytest.raises(MessageRefused, match="reference"):
        seal_body(b"x" * (MAX_BODY + 1), **options)


@pytest.mark.parametrize("missing", ["ce-id", "ce-type"])
def test_a_message_of_somebody_else_is_refused_as_such(missing: str) -> None:
    headers = seal_body(b"{}", type_="t", topic="t").to_headers()
    del headers[missing]
    with pytest.raises(MessageRefused, match="CloudEvents"):
        Envelope.from_headers("t", headers, b"{}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce-id", "seven"),
        ("ce-kind", "rumour"),
        ("ce-dataversion", "one"),
        ("ce-correlationid", "a%0D%0Ab"),
        ("ce-source", "x" * 256),
    ],
)
def test_headers_that_make_no_sense_are_refused(name: str, value: str) -> None:
    headers = seal_body(b"{}", type_="t", topic="t").to_headers()
    with pytest.raises(MessageRefused):
        Envelope.from_headers("t", {**headers, name: value}, b"{}")


def test_an_envelope_does_not_change() -> None:
    envelope = seal_body(b"{}", type_="t", topic="t")
    with pytest.raises(AttributeError):
        envelope.topic = "other"  # type: ignore[misc]
    assert replace(envelope, topic="other").id == envelope.id


@given(st.data(), st.integers(1, 3))
def test_a_replay_is_counted_and_nothing_else_of_the_row_changes(
    data: st.DataObject, times: int
) -> None:
    envelope = _drawn(data)
    metadata = envelope.metadata()
    for _ in range(times):
        metadata = replayed(metadata)
    again = Envelope.from_row(envelope.id, envelope.topic, envelope.key, metadata, envelope.body)
    assert again == replace(envelope, replay=times)
    assert again.metadata() == metadata
    assert again.to_headers() == envelope.to_headers()


def test_a_message_that_was_never_replayed_says_nothing_about_it() -> None:
    envelope = seal_body(b"{}", type_="T", topic="t", headers={"odd": "a \\u0000 in words"})
    assert "replay" not in envelope.metadata()
    later = '{"of":"a later version","replay":3}'
    assert replayed(later) == '{"of":"a later version","replay":4}'
    assert '"replay":1' in replayed(envelope.metadata())


@pytest.mark.parametrize("metadata", ["", "{not json", "[]", "3", '{"replay":"x"}', "null"])
def test_metadata_that_cannot_be_read_is_replayed_as_it_is(metadata: str) -> None:
    assert replayed(metadata) == metadata
