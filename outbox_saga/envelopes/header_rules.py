"""What may be a key, or stand in a header.

What some database or broker could not carry is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from outbox_saga.errors import MessageRefused

MAX_KEY = 255
MAX_HEADERS = 16 * 1024

_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '%"')


def encode(text: str) -> str:
    """As it stands in a header: percent-encoded where CloudEvents asks for it."""
    return quote(text, safe=_SAFE + " ") if text.isascii() is False or "%" in text else text


def _is_plain(text: str) -> bool:
    """True for what nearly every key and name is: fine in every way that `check_*` asks for."""
    return type(text) is str and text.isascii() and text.isprintable() and 0 < len(text) <= MAX_KEY


def check_key(key: str | None) -> str | None:
    """The key itself.

    Raises MessageRefused for one that some database or broker could not carry.
    """
    if key is None:
        return None
    if _is_plain(key):
        return key
    if not isinstance(key, str):
        raise MessageRefused("key", f"is a {type(key).__name__}; use a string")
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        raise MessageRefused("key", "contains a lone surrogate, which is not UTF-8") from None
    if not 0 < size <= MAX_KEY:
        raise MessageRefused("key", f"is {size} bytes; use 1 to {MAX_KEY}, or None for no key")
    if _CONTROL.search(key):
        raise MessageRefused("key", "contains a control character; remove it")
    return key


def check_line(path: str, text: str) -> None:
    """Raises MessageRefused for what could not stand in a header, or would forge another one."""
    if _is_plain(text):
        return
    if not isinstance(text, str):
        raise MessageRefused(path, f"is a {type(text).__name__}; use a string")
    if _CONTROL.search(text):
        raise MessageRefused(path, "contains a control character; remove it")
    if not text.isascii() and path == "content_type":
        raise MessageRefused(path, "is not ASCII; a media type is")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise MessageRefused(path, "contains a lone surrogate, which is not UTF-8") from None
    if size > MAX_KEY:
        raise MessageRefused(path, f"is {size} bytes; use at most {MAX_KEY}")


def _is_header_name(name: object) -> bool:
    return isinstance(name, str) and _HEADER_NAME.fullmatch(name) is not None


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with lower-case names.

    Raises MessageRefused for what could forge another header.
    """
    if not isinstance(headers, Mapping):
        raise MessageRefused("headers", f"are a {type(headers).__name__}; use a mapping")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not _is_header_name(name):
            raise MessageRefused(
                "headers",
                f"{name!r} is not a header name: letters, digits, '_' and '-', at most 64",
            )
        lower = name.lower()
        if lower.startswith(("ce-", "ce_", "nats-")) or lower == "content-type":
            raise MessageRefused(f"headers.{name}", "is reserved; choose another name")
        if lower in checked:
            raise MessageRefused(f"headers.{name}", "stands twice (names ignore case)")
        if not isinstance(value, str):
            raise MessageRefused(f"headers.{name}", f"is a {type(value).__name__}; use a string")
        if _CONTROL.search(value):
            raise MessageRefused(f"headers.{name}", "contains a control character; remove it")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise MessageRefused(f"headers.{name}", "contains a lone surrogate") from None
        checked[lower] = value
    # as they travel, where `é` is `%C3%A9`: a carrier's limit is in bytes
    if sum(len(n) + len(encode(v)) for n, v in checked.items()) > MAX_HEADERS:
        raise MessageRefused(
            "headers",
            f"are longer than {MAX_HEADERS} bytes together, percent-encoded; put it in the body",
        )
    return checked
