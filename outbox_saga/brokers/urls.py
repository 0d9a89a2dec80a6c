"""A broker's URL taken apart; each error says what would do.

Credentials appear in no error and no `repr`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from outbox_saga.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A URL of the form `scheme://[user[:password]@]host[:port][,host…][/path][?option=value&…]`.

    Args:
        scheme: As written, in lower case.
        hosts: At least one, each with its port.
        user: Percent-decoded; None when the URL has none.
        password: Likewise.
        path: Without its first slash.
        options: The query, each name once.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    path: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, url: str, *, port: int, known: Collection[str]) -> BrokerUrl:
        """The parts of this URL; raises ConfigurationError for what cannot work."""
        # by hand: the urlsplit of newer Pythons takes no brackets behind a comma
        scheme, _, rest = url.partition("://")
        rest, _, query = rest.partition("?")
        if "#" in rest + query or "@" in query or "@" in rest.partition("/")[2]:
            # told of as an option's name or value, it would show a part of the password
            raise ConfigurationError(
                "the broker's URL has a '#', or an '@' behind its hosts; percent-encode '/', '?', "
                "'#' and '@' in a password, and '#' and '@' in an option"
            )
        place, _, path = rest.partition("/")
        if place.count("[") != place.count("]"):
            raise ConfigurationError("the broker's URL is not a URL; check its brackets")
        credentials, at, hosts = place.partition("@")
        if not at:
            credentials, hosts = "", place
        if "@" in hosts:
            raise ConfigurationError(
                "the broker's URL has more than one '@'; give the credentials once, before the "
                "first host, and write "
                "'@' in a password as %40"
            )
        user, colon, password = credentials.partition(":")
        return cls(
            scheme=scheme.lower(),
            hosts=tuple(_host(host, port) for host in hosts.split(",")),
            user=unquote(user) if at else None,
            password=unquote(password) if colon else None,
            path=path,
            options=_options(query, known),
        )

    def text(self, name: str, default: str) -> str:
        """The option, never empty."""
        value = self.options.get(name, default)
        if not value:
            raise ConfigurationError(
                f"the broker's URL has an empty {name}=; give a value or leave it out"
            )
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """The option as yes or no."""
        value = self.options.get(name)
        if value is None:
            return default
        if value not in {"0", "1"}:
            raise ConfigurationError(f"the broker's URL has {name}={value!r}; use 1 or 0")
        return value == "1"

    def count(self, name: str, default: int, *, least: int = 1, most: int = 1_000_000) -> int:
        """The option as a whole number within bounds."""
        value = self.options.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
            raise ConfigurationError(
                f"the broker's URL has {name}={value!r}; use a whole number from {least} to {most}"
            )
        return int(value)

    def seconds(self, name: str, default: float, *, least: float = 0.01) -> float:
        """The option as a finite number of seconds."""
        value = self.options.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not least <= number < float("inf"):
            raise ConfigurationError(
                f"the broker's URL has {name}={value!r}; use a number of seconds, at least "
                f"{least:g}"
            )
        return number


def _host(text: str, port: int) -> tuple[str, int]:
    name, colon, number = text.rpartition(":")
    if not colon or text.endswith("]"):  # the colons of a bare IPv6 address stand within brackets
        name, number = text, str(port)
    name = name.removeprefix("[").removesuffix("]")
    if not name or not (number.isascii() and number.isdigit() and 0 < int(number) < 65536):
        # The text itself may hold a password whose '@' or '/' was not percent-encoded.
        raise ConfigurationError(
            "the broker's URL has a host that is not host or host:port; separate several by "
            "commas, and "
            "percent-encode '@', '/', ':' and ',' in a password"
        )
    return name, int(number)


def _options(query: str, known: Collection[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ConfigurationError(
                f"the broker's URL has an unknown option {name!r}; there are: "
                f"{', '.join(sorted(known))}"
            )
        if name in options:
            raise ConfigurationError(f"the broker's URL has {name}= twice; give it once")
        options[name] = value
    return options
