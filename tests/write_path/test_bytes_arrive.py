"""What is not refused arrives byte for byte, on every database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.envelopes import MAX_BODY, MAX_KEY
from outbox_saga.errors import MessageRefused
from outbox_saga.messages import Event
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.bad_inputs import Anything, deep, deep_object
from tests.write_path.shop import Said, Shop

BYTES = "application/octet-stream"

TEXTS = [
    "",
    " ",
    "ä ö ü ß",
    "e\u0301 is not \u00e9",
    "😀 and \U0010ffff",
    "\ufeff mark \ufffe \uffff",
    "line\u2028end\u2029 \x85",
    "tab\t newline\n return\r bell\x07 escape\x1b delete\x7f",
    r"backslash \ and \\ and \u0000 and \x00",
    "quotes ' \" ` and $$ and $1 and ? and :name and %s and %(name)s and %% and {}",
    "'; drop table outbox_saga_outbox; --",
    "</script><script>alert(1)</script>",
    "\u202eevil\u202c \u200b \u00ad",
    "日本語 العربية עברית हिन्दी ไทย",
    "x" * 10_000,
]
VALUES: list[Any] = [
    *TEXTS,
    {text[:100]: text for text in TEXTS},
    None,
    True,
    0,
    -0.0,
    5e-324,
    1.7976931348623157e308,
    0.1 + 0.2,
    2**53 + 1,
    -(2**64),
    10**4000,
    [],
    {},
    {"": {"": ""}},
    [[[]], {}],
    deep(63),
    deep_object(63),
]
BODIES = [
    b"{}",
    b"null",
    b' { "a" : 1 , "b" : [ 1 , 2 ] } \n',
    b'{"b": 1, "a": 2, "A": 3}',
    b"1.0",
    b"1e2",
    b"-0",
    b"123456789012345678901234567890.123456789012345678901234567890",
    rb'"\u00e4 \ud83d\ude00 \/ \b\f\n\r\t \\u0000"',
    '"ä 😀 \ufeff \u2028"'.encode(),
    b"[" * 64 + b"]" * 64,
    b'"' + b"x" * (MAX_BODY - 2) + b'"',
]
KEYS = [
    "k",
    " k",
    "k ",
    "K",
    "é",
    "e\u0301",
    "😀",
    "ABC",
    "abc",
    "äbc",
    "%s %(x)s ' \" \\ `",
    "order:1",
    "x" * MAX_KEY,
    "ä" * 127 + "x",
    "😀" * 63 + "xyz",
    "\ufeff",
    "\u00a0",
]


def test_bodies_are_carried_as_they_are(shop: Shop) -> None:
    every_byte = bytes(range(256))
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for body in BODIES:
            uow.publish_body(body, topic="talk", type="Said")
        for body in (b"", b"\x00", every_byte, every_byte * 1024):
            uow.publish_body(body, topic="talk", type="Said", content_type=BYTES)
    assert [row.body for row in shop.rows()] == [
        *BODIES,
        b"",
        b"\x00",
        every_byte,
        every_byte * 1024,
    ]


@pytest.mark.parametrize("less", [0, 1])
def test_a_message_of_the_largest_size_leaves(shop: Shop, less: int) -> None:
    word = "x" * (MAX_BODY - len('{"word":""}') - less)
    with Session(shop.engine) as session, session.begin():
        UnitOfWork(session).publish(Said(word=word), key="k" * MAX_KEY)
    (row,) = shop.rows()
    assert len(row.body) == MAX_BODY - less
    assert json.loads(row.body) == {"word": word}
    assert row.key == "k" * MAX_KEY


def test_values_read_back_as_they_were(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for value in VALUES:
            uow.publish(Anything(value=value))
    rows = shop.rows()
    for row, value in zip(rows, VALUES, strict=True):
        assert json.loads(row.body) == {"value": value}
        assert Anything.from_body(row.body) == Anything(value=value)
    assert str(json.loads(rows[VALUES.index(-0.0)].body)["value"]) in ("-0.0", "0")


def test_keys_headers_and_the_rest_read_back_as_they_were(shop: Shop) -> None:
    headers = {f"h{number}": text for number, text in enumerate(KEYS)}
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(
            session, source="für \U0001f600", correlation_id="a b%20 'ä'", causation_id="c\\"
        )
        ids = [
            uow.publish(Said(word="x"), key=key, headers=headers, topic="a.b_c-D.9")
            for key in KEYS
        ]
    for row, id_, key in zip(shop.rows(), ids, KEYS, strict=True):
        envelope = row.envelope()
        assert (envelope.id, envelope.key, envelope.topic) == (id_, key, "a.b_c-D.9")
        assert envelope.headers == headers
        assert (envelope.source, envelope.correlation_id, envelope.causation_id) == (
            "für \U0001f600",
            "a b%20 'ä'",
            "c\\",
        )


async def test_they_arrive_from_an_async_session_too(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    every_byte = bytes(range(256))
    async with AsyncSession(async_engine) as session, session.begin():
        uow = UnitOfWork(session)
        for key in KEYS:
            uow.publish(Said(word=key), key=key, headers={"h": key})
        uow.publish_body(every_byte, topic="talk", type="Said", content_type=BYTES)
    *rows, last = shop.rows()
    assert last.body == every_byte
    for row, key in zip(rows, KEYS, strict=True):
        assert (row.key, json.loads(row.body)["word"], row.envelope().headers) == (
            key,
            key,
            {"h": key},
        )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
property_settings = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Kept(Event, topic="talk"):
    """Any JSON."""

    value: Any


def test_any_value_arrives_or_is_refused(shop: Shop) -> None:
    @property_settings
    @given(st.lists(json_values, max_size=5), st.text(min_size=1, max_size=20))
    def check(values: list[Any], key: str) -> None:
        shop.empty()
        sent: list[Any] = []
        with Session(shop.engine) as session, session.begin():
            for value in values:
                try:
                    UnitOfWork(session).publish(Kept(value=value), key=key)
                except MessageRefused:
                    continue
                sent.append(value)
        rows = shop.rows()
        assert [json.loads(row.body)["value"] for row in rows] == sent
        assert all(row.key == key for row in rows)

    check()


def test_any_bytes_arrive(shop: Shop) -> None:
    @property_settings
    @given(st.lists(st.binary(max_size=300), max_size=5))
    def check(bodies: list[bytes]) -> None:
        shop.empty()
        with Session(shop.engine) as session, session.begin():
            for body in bodies:
                UnitOfWork(session).publish_body(
                    body, topic="talk", type="Said", content_type=BYTES
                )
        assert [row.body for row in shop.rows()] == bodies

    check()
