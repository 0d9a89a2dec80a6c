"""The corpus of what is refused at the door: what is published, and the path the refusal names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from outbox_saga.envelopes import MAX_BODY, MAX_HEADERS
from outbox_saga.messages import Event
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said


class Anything(Event, topic="talk"):
    """A message that carries whatever it is given."""

    value: Any = None


class Homeless(Event):
    """A message without a topic."""


class Line(BaseModel):
    """A part of a message."""

    price: Any = None
    raw: bytes = b""


class Invoice(Event, topic="talk"):
    """A message with parts."""

    lines: list[Line]


@dataclass(frozen=True)
class Bad:
    """One thing to publish, and the path of what is wrong with it."""

    name: str
    path: str
    publish: Callable[[Any], object]
    #: How the path may go on: a serializer may have gone round a loop once already.
    turn: str = ""


def corpus() -> list[Bad]:
    """All of it; names are distinct."""
    found = [*values(), *bodies(), *keys(), *topics(), *headers(), *metadata(), *messages()]
    names = [bad.name for bad in found]
    assert len(set(names)) == len(names)
    return found


# --- values of a message -------------------------------------------------------------------------


def deep(levels: int, leaf: object = 0) -> Any:
    """That many lists in one another."""
    value = leaf
    for _ in range(levels):
        value = [value]
    return value


def deep_object(levels: int) -> Any:
    """That many objects in one another."""
    value: Any = 0
    for _ in range(levels):
        value = {"k": value}
    return value


def looped_list() -> Any:
    """A list that contains itself."""
    value: list[Any] = [1]
    value.append(value)
    return value


def looped_object() -> Any:
    """An object that contains itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def two_in_a_loop() -> Any:
    """Two that contain each other."""
    one: dict[str, Any] = {}
    one["two"] = [one]
    return one


# name: (value, how the path goes on from where it stands)
VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    "NUL alone": (lambda: "\x00", ""),
    "NUL first": (lambda: "\x00abc", ""),
    "NUL last": (lambda: "abc\x00", ""),
    "NUL beside umlauts": (lambda: "ä\x00ö", ""),
    "NUL in bytes": (lambda: b"a\x00b", ""),
    "NUL in a key": (lambda: {"a\x00": 1}, ".'a\\x00'"),
    "a lone high surrogate": (lambda: "\ud800", ""),
    "a lone low surrogate": (lambda: "x\udc00", ""),
    "surrogates the wrong way round": (lambda: "\udc00\ud800", ""),
    "a surrogate in a key": (lambda: {"\udfff": 1}, ".'\\udfff'"),
    "NaN": (lambda: float("nan"), ""),
    "Infinity": (lambda: float("inf"), ""),
    "-Infinity": (lambda: float("-inf"), ""),
    "NaN in a tuple": (lambda: (1, float("nan")), "[1]"),
    "NaN in a set": (lambda: {float("nan")}, "[0]"),
    "a key that is an int": (lambda: {1: "x"}, ""),
    "a key that is a float": (lambda: {1.5: "x"}, ""),
    "a key that is None": (lambda: {None: "x"}, ""),
    "a key that is True": (lambda: {True: "x"}, ""),
    "a key that is a tuple": (lambda: {(1, 2): "x"}, ""),
    "a key that is bytes": (lambda: {b"k": "x"}, ""),
    "keys that would become one": (lambda: {1: "x", "1": "y"}, ""),
    "a list that is a loop": (looped_list, "[1]"),
    "an object that is a loop": (looped_object, ".self"),
    "two in a loop": (two_in_a_loop, ".two[0]"),
    "an object of no JSON type": (object, ""),
    "a class": (lambda: int, ""),
    "a function": (lambda: len, ""),
    "bytes that are not UTF-8": (lambda: b"\xff\xfe", ""),
    "an integer of 5,000 digits": (lambda: 10**5000, ""),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "$.value": lambda value: value,
    "$.value.a": lambda value: {"b": 1, "a": value},
    "$.value[1]": lambda value: [None, value],
    "$.value.a[0].b": lambda value: {"a": [{"b": value}]},
}


def publish_value(make: Callable[[], Any], place: Callable[[Any], Any]) -> Callable[[Any], object]:
    """Publishes a message with that value at that place."""
    return lambda session: UnitOfWork(session).publish(Anything(value=place(make())))


def publish(message: Any, **options: Any) -> Callable[[Any], object]:
    """Publishes that message."""
    return lambda session: UnitOfWork(session).publish(message, **options)


def values() -> Iterator[Bad]:
    """What a message may not carry, each at four places."""
    for name, (make, suffix) in VALUES.items():
        for path, place in PLACES.items():
            turn = suffix if "loop" in name else ""
            yield Bad(f"{name}, at {path}", path + suffix, publish_value(make, place), turn)
    yield Bad("65 lists in one another", "$.value" + "[0]" * 63, publish(Anything(value=deep(64))))
    yield Bad("1,000 lists", "$.value" + "[0]" * 63, publish(Anything(value=deep(1000))))
    yield Bad("100,000 lists", "$.value" + "[0]" * 63, publish(Anything(value=deep(100_000))))
    yield Bad(
        "65 objects in one another",
        "$.value" + ".k" * 63,
        publish(Anything(value=deep_object(64))),
    )
    yield Bad(
        "NaN in a part", "$.lines[1].price", publish(Invoice(lines=[Line(), Line(price=nan)]))
    )
    yield Bad(
        "NUL in a part's bytes", "$.lines[0].raw", publish(Invoice(lines=[Line(raw=b"\x00")]))
    )
    yield Bad(
        "a body of one byte too many",
        "$",
        publish(Said(word="x" * (MAX_BODY - len('{"word":""}') + 1))),
    )
    yield Bad("a body of 50 MB", "$", publish(Said(word="x" * 50_000_000)))


nan = float("nan")

# --- bodies --------------------------------------------------------------------------------------

BODIES: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "$"),
    "white space": (b"  \n", "$"),
    "half an object": (b'{"a": 1', "$"),
    "half a string": (b'"abc', "$"),
    "two values": (b"1 2", "$"),
    "something after the value": (b'{"a": 1} x', "$"),
    "a trailing comma": (b"[1, 2,]", "$"),
    "a trailing comma in an object": (b'{"a": 1,}', "$"),
    "a comment": (b"[1] // one", "$"),
    "single quotes": (b"{'a': 1}", "$"),
    "a bare key": (b"{a: 1}", "$"),
    "a key that is a number": (b"{1: 1}", "$"),
    "True": (b"True", "$"),
    "None": (b"None", "$"),
    "undefined": (b"undefined", "$"),
    "a leading zero": (b"01", "$"),
    "a leading plus": (b"+1", "$"),
    "a leading point": (b".5", "$"),
    "a trailing point": (b"1.", "$"),
    "hexadecimal": (b"0x10", "$"),
    "a raw line feed in a string": (b'"a\nb"', "$"),
    "a raw NUL in a string": (b'"a\x00b"', "$"),
    "a raw NUL after the value": (b"1\x00", "$"),
    "an unknown escape": (rb'"\x41"', "$"),
    "NaN": (b"NaN", "$"),
    "Infinity": (b"Infinity", "$"),
    "-Infinity": (b"-Infinity", "$"),
    "NaN in a list": (b"[1, NaN]", "$[1]"),
    "Infinity in an object": (b'{"a": {"b": [Infinity]}}', "$.a.b[0]"),
    "-Infinity in an object": (b'{"a": -Infinity}', "$.a"),
    "a number too large for a float": (b'{"a": 1e400}', "$.a"),
    "a number too small for a float": (b"[-1e400]", "$[0]"),
    "a key twice": (b'{"a": 1, "a": 2}', "$"),
    "a key twice with one value": (b'{"a": 1, "a": 1}', "$"),
    "a key twice, once escaped": (rb'{"a": 1, "\u0061": 2}', "$"),
    "the empty key twice": (b'{"": 1, "": 2}', "$"),
    "a key twice, deeper": (b'{"a": [0, {"b": 1, "c": 2, "b": 3}]}', "$.a[1]"),
    "a key twice in an object that stands twice": (b'{"a": {"x": 1, "x": 1}, "a": 2}', "$"),
    "an escaped NUL": (rb'{"a": "\u0000"}', "$.a"),
    "an escaped NUL in a key": (rb'{"a": {"\u0000": 1}}', "$.a.'\\x00'"),
    "an escaped lone surrogate": (rb'["\ud800"]', "$[0]"),
    "an escaped lone low surrogate": (rb'["a", "\udc00"]', "$[1]"),
    "escaped surrogates the wrong way round": (rb'"\udc00\ud800"', "$"),
    "an escaped surrogate in a key": (rb'{"\udfff": 1}', "$.'\\udfff'"),
    "a lone surrogate in UTF-8": (b'"\xed\xa0\x80"', "$"),
    "Latin-1": (b'"\xe4"', "$"),
    "half a character": (b'"\xe2\x82"', "$"),
    "an overlong slash": (b'"\xc0\xaf"', "$"),
    "beyond Unicode": (b'"\xf4\x90\x80\x80"', "$"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "$"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "$"),
    "UTF-16, little-endian, without a mark": ('{"a": 1}'.encode("utf-16-le"), "$"),
    "UTF-16, big-endian, without a mark": ('{"a": 1}'.encode("utf-16-be"), "$"),
    "UTF-32": ('{"a": 1}'.encode("utf-32"), "$"),
    "UTF-32, little-endian, without a mark": ('{"a": 1}'.encode("utf-32-le"), "$"),
    "65 lists in one another": (b"[" * 65 + b"]" * 65, "$" + "[0]" * 64),
    "65 objects in one another": (b'{"k":' * 65 + b"0" + b"}" * 65, "$" + ".k" * 64),
    "100,000 lists in one another": (b"[" * 100_000 + b"]" * 100_000, "$"),
    "100,000 lists that never end": (b"[" * 100_000, "$"),
    "an integer of 5,000 digits": (b"1" * 5000, "$"),
    "a body of one byte too many": (b'"' + b"x" * (MAX_BODY - 1) + b'"', "$"),
    "a string": ('{"a": 1}', "body"),
    "a bytearray": (bytearray(b"{}"), "body"),
    "a memoryview": (memoryview(b"{}"), "body"),
    "None as body": (None, "body"),
    "an int as body": (1, "body"),
    "a dict as body": ({}, "body"),
}


def publish_through(options: dict[str, Any]) -> Callable[[Any], object]:
    """Publishes through a unit of work with these options."""
    return lambda session: UnitOfWork(session, **options).publish(Said(word="x"))


def publish_body(body: Any = b"{}", **options: Any) -> Callable[[Any], object]:
    """Publishes that body."""
    chosen: dict[str, Any] = {"topic": "talk", "type": "Said"} | options
    return lambda session: UnitOfWork(session).publish_body(body, **chosen)


def bodies() -> Iterator[Bad]:
    """Ready bodies that call themselves JSON."""
    for name, (body, path) in BODIES.items():
        yield Bad(f"body: {name}", path, publish_body(body))
    for media in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"):
        yield Bad(f"body: NaN as {media}", "$[0]", publish_body(b"[NaN]", content_type=media))
    yield Bad(
        "body: too large, whatever it is",
        "$",
        publish_body(b"x" * (MAX_BODY + 1), content_type="application/octet-stream"),
    )


# --- keys, topics, headers -----------------------------------------------------------------------


def controls() -> list[str]:
    """Every control character, and the two line ends of Unicode."""
    codes = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]
    return [chr(code) for code in codes]


def keys() -> Iterator[Bad]:
    """What is no key."""
    wrong: dict[str, Any] = {
        "empty": "",
        "256 bytes": "x" * 256,
        "256 bytes of two-byte letters": "ä" * 128,
        "256 bytes of emoji": "😀" * 64,
        "9,000 characters": "x" * 9000,
        "a lone surrogate": "a\ud800",
        "an int": 1,
        "bytes": b"k",
        "a tuple": ("k",),
        "False": False,
        "zero": 0,
    }
    wrong |= {f"control U+{ord(c):04X}": f"a{c}b" for c in controls()}
    for name, key in wrong.items():
        yield Bad(f"key: {name}", "key", publish(Said(word="x"), key=key))


def topics() -> Iterator[Bad]:
    """What is no topic."""
    wrong: dict[str, Any] = {
        "empty": "",
        "a dot": ".",
        "two dots together": "a..b",
        "a dot at the end": "a.",
        "a dot at the beginning": ".a",
        "a space": "a b",
        "a slash": "a/b",
        "a star": "a.*",
        "a greater-than sign": ">",
        "a hash": "a.#",
        "an umlaut": "bestellungen.für",
        "a line feed at the end": "a\n",
        "CR and LF": "a\r\nPUB x 0",
        "NUL": "a\x00",
        "a lone surrogate": "a\ud800",
        "201 characters": "a" * 201,
        "an int": 1,
        "bytes": b"talk",
    }
    for name, topic in wrong.items():
        yield Bad(f"topic: {name}", "topic", publish(Said(word="x"), topic=topic))
    yield Bad("topic: the message has none", "topic", publish(Homeless()))


def headers() -> Iterator[Bad]:
    """What is no header."""
    names: dict[str, Any] = {
        "empty": "",
        "a space": "a b",
        "a colon": "a:b",
        "a dot": "a.b",
        "an umlaut": "für",
        "a line feed": "a\n",
        "CR and LF": "a\r\nb",
        "a dash at the beginning": "-a",
        "65 characters": "a" * 65,
        "an int": 1,
        "None": None,
        "bytes": b"a",
    }
    for name, header in names.items():
        yield Bad(
            f"header name: {name}", "headers", publish(Said(word="x"), headers={header: "v"})
        )
    for name in ("ce-id", "CE-ID", "ce_type", "Nats-Msg-Id", "Content-Type"):
        yield Bad(
            f"header name: {name}", f"headers.{name}", publish(Said(word="x"), headers={name: "v"})
        )
    yield Bad(
        "header name: twice", "headers.A", publish(Said(word="x"), headers={"a": "v", "A": "v"})
    )
    contents: dict[str, Any] = {
        "an int": 1,
        "None": None,
        "bytes": b"v",
        "a list": ["v"],
        "a forged header": "v\r\nce-id: forged",
        "a lone surrogate": "\udc00",
    }
    contents |= {f"control U+{ord(c):04X}": f"a{c}b" for c in controls()}
    for name, value in contents.items():
        yield Bad(
            f"header value: {name}", "headers.h", publish(Said(word="x"), headers={"h": value})
        )
    yield Bad(
        "headers: too long together",
        "headers",
        publish(Said(word="x"), headers={"h": "v" * MAX_HEADERS}),
    )
    for name, given in {"a list": [("a", "b")], "a string": "a: b", "an int": 1}.items():
        yield Bad(f"headers: {name}", "headers", publish(Said(word="x"), headers=given))


def metadata() -> Iterator[Bad]:
    """What else travels with a message."""
    types: dict[str, Any] = {
        "empty": "",
        "a space": "Order Placed",
        "a slash": "a/b",
        "a line feed": "Order\n",
        "a dot at the beginning": ".Order",
        "an umlaut": "Aufträge",
        "256 characters": "a" * 256,
        "None": None,
        "an int": 1,
    }
    for name, type_ in types.items():
        yield Bad(f"type: {name}", "type", publish_body(type=type_))
    lines = {
        "CR and LF": "a\r\nb",
        "NUL": "a\x00",
        "a lone surrogate": "a\ud800",
        "256 bytes": "x" * 256,
        "an int": 1,
    }
    for name, line in lines.items():
        for what in ("source", "correlation_id", "causation_id"):
            options: dict[str, Any] = {what: line}
            yield Bad(
                f"{what}: {name}",
                what,
                publish_through(options),
            )
        yield Bad(f"content_type: {name}", "content_type", publish_body(content_type=line))
    yield Bad("content_type: umlaut", "content_type", publish_body(content_type="text/für"))
    for version in (0, -1, 1.5, "1", None, True):
        yield Bad(f"version: {version!r}", "version", publish_body(version=version))
    for kind in ("", "Event", "query", None, 1):
        yield Bad(f"kind: {kind!r}", "kind", publish_body(kind=kind))


def messages() -> Iterator[Bad]:
    """What is no message."""
    wrong: dict[str, Any] = {
        "a dict": {"word": "x"},
        "a string": "x",
        "None": None,
        "the class": Said,
        "a model that is no message": Line(),
    }
    for name, message in wrong.items():
        yield Bad(f"message: {name}", "message", publish(message))
