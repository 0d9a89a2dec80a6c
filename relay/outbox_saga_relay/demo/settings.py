"""What a process of the demo has to know, handed down in environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from outbox_saga.errors import ConfigurationError

_DATABASE = "OUTBOX_SAGA_DEMO_DATABASE_URL"
_BROKER = "OUTBOX_SAGA_DEMO_BROKER"
_PROVIDER = "OUTBOX_SAGA_DEMO_PROVIDER_URL"
_FAULTS = "OUTBOX_SAGA_DEMO_FAULTS"


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the shop.

    Args:
        database_url: The shop's database.
        broker: "local", or the URL of a broker.
        provider_url: Where payments are taken and mails are sent.
        faults: The seed of what goes wrong; None: nothing does.
    """

    database_url: str
    broker: str
    provider_url: str
    faults: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings of this process; raises ConfigurationError when one is missing."""
        found = os.environ if environment is None else environment
        try:
            faults = found.get(_FAULTS, "")
            return cls(
                database_url=found[_DATABASE],
                broker=found.get(_BROKER, "local"),
                provider_url=found[_PROVIDER],
                faults=int(faults) if faults else None,
            )
        except KeyError as missing:
            raise ConfigurationError(
                f"{missing.args[0]} is not set; `outbox-saga demo` sets it for its processes"
            ) from None
        except ValueError:
            raise ConfigurationError(f"{_FAULTS} must be a whole number, or empty") from None

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads."""
        return {
            _DATABASE: self.database_url,
            _BROKER: self.broker,
            _PROVIDER: self.provider_url,
            _FAULTS: "" if self.faults is None else str(self.faults),
        }
