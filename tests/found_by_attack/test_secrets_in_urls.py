"""No part of a password in what is said about a broker's URL."""

from __future__ import annotations

import pytest

from outbox_saga.brokers import open_publisher
from outbox_saga.errors import ConfigurationError


@pytest.mark.parametrize("letter", list("?/#@:,&=[]% "))
def test_a_password_that_is_not_percent_encoded_is_not_told(letter: str) -> None:
    for host in ("host?", "host:4222?", "host/?", "host?stream=X&"):
        with pytest.raises(ConfigurationError) as told:
            open_publisher(f"nats://user:12{letter}hunter2@{host}timeout=never")
        assert "hunter2" not in str(told.value)
