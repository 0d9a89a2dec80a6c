"""No part of a password in what is said about a broker's URL."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from outbox_saga.brokers import open_publisher
from outbox_saga.errors import ConfigurationError
from outbox_saga_relay.cli import main


@pytest.mark.parametrize("letter", list("?/#@:,&=[]% "))
def test_a_password_that_is_not_percent_encoded_is_not_told(letter: str) -> None:
    for host in ("host?", "host:4222?", "host/?", "host?stream=X&"):
        with pytest.raises(ConfigurationError) as told:
            open_publisher(f"nats://user:12{letter}hunter2@{host}timeout=never")
        assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("command", ["doctor", "relay", "run", "consume", "orchestrate"])
@pytest.mark.parametrize("scheme", ["nats", "postgresql", "sqlite"])
def test_a_url_in_the_place_of_the_service_is_not_repeated(command: str, scheme: str) -> None:
    told = CliRunner().invoke(main, [command, f"{scheme}://user:hunter2@host"])
    assert told.exit_code != 0
    assert "hunter2" not in told.output
    assert "a URL stands where the service should" in told.output
