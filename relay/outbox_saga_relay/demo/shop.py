"""The shop as a program: `outbox-saga relay outbox_saga_relay.demo.shop:service`, and so on."""

from __future__ import annotations

from outbox_saga_relay.demo.assembly import build
from outbox_saga_relay.demo.settings import Settings

service = build(Settings.from_environment()).service
