"""Broker URLs: what is understood, what is refused, and that credentials never come out."""

from __future__ import annotations

import pytest

from outbox_saga.brokers import Subscription, open_publisher, open_subscriber
from outbox_saga.brokers.nats_consumer import durable_name
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.brokers.urls import BrokerUrl
from outbox_saga.errors import ConfigurationError

SECRET = "s3cr%40t"  # as written in a URL; s3cr@t as meant


def parse(url: str) -> BrokerUrl:
    return BrokerUrl.parse(url, port=4222, known=("stream", "timeout"))


def test_every_part_of_a_url_is_understood() -> None:
    url = parse(f"NATS://us%3Aer:{SECRET}@a,b:5000,[::1]:6000/path?stream=X&timeout=1.5")

    assert url.scheme == "nats"
    assert url.hosts == (("a", 4222), ("b", 5000), ("::1", 6000))
    assert (url.user, url.password) == ("us:er", "s3cr@t")
    assert url.path == "path"
    assert (url.text("stream", "Y"), url.seconds("timeout", 9)) == ("X", 1.5)


def test_a_url_without_credentials_or_options_has_the_defaults() -> None:
    url = parse("nats://localhost")

    assert (url.user, url.password) == (None, None)
    assert url.hosts == (("localhost", 4222),)
    assert (url.text("stream", "Y"), url.flag("create", default=True)) == ("Y", True)


@pytest.mark.parametrize(
    "rest",
    [
        "host:port",
        "host:99999",
        "host:0",
        ":4222",
        "",
        "host,,other",
        "host,user:{secret}@other",
        "user:{secret}@user:{secret}@host",
        "[::1",
        "host?timeout=soon",
        "host?timeout=nan",
        "host?timeout=-1",
        "host?create=yes",
        "host?replicas=0&create=1",
        "host?replicas=3",
        "host?dedup_window=600&create=0",
        "host?replicas=\u0663&create=1",
        "host?stream=",
        "host?stream=a.b",
        "host?stream=A&stream=B",
        "host?prefix=a..b",
        "host?prefix=*",
        "host?sream=OUTBOX",
        "host/stream",
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_password(rest: str) -> None:
    url = f"nats://user:{SECRET}@{rest.format(secret=SECRET)}"
    with pytest.raises(ConfigurationError) as refused:
        open_publisher(url)

    assert "s3cr" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'strem'.*ack_wait.*prefix.*stream.*timeout"):
        open_publisher("nats://localhost?strem=X")


def test_settings_show_no_credentials() -> None:
    settings = NatsSettings.parse(f"nats://user:{SECRET}@host?stream=X")

    assert "s3cr" not in repr(settings)
    assert "user" not in repr(settings)
    assert settings.servers == ("nats://host:4222",)


def test_topics_and_subjects_map_onto_each_other() -> None:
    settings = NatsSettings.parse("nats://host?prefix=shop.outbox")

    assert settings.subject("orders.eu") == "shop.outbox.orders.eu"
    assert settings.topic("shop.outbox.orders.eu") == "orders.eu"


@pytest.mark.parametrize("name", ["billing", "a.b.c", "a b/c\\d*>", "заказ", "100%", "~_-."])
def test_a_consumer_name_becomes_one_token_and_can_be_read_back(name: str) -> None:
    from urllib.parse import unquote

    durable = durable_name(name)

    assert set(durable).isdisjoint(" .*>/\\~")
    assert unquote(durable) == name


@pytest.mark.parametrize(
    "subscription",
    [
        Subscription("", ("orders",)),
        Subscription("x" * 256, ("orders",)),
        Subscription("é" * 50, ("orders",)),
        Subscription("billing", ()),
        Subscription("billing", ("a b",)),
        Subscription("billing", ("orders",), concurrency=0),
    ],
)
def test_a_subscription_that_cannot_work_is_refused(subscription: Subscription) -> None:
    with pytest.raises(ConfigurationError):
        open_subscriber("nats://localhost", subscription)


@pytest.mark.parametrize("url", ["s3cret@host", "s3cret", "amqps3cret:x@y", ""])
def test_what_is_no_url_of_a_broker_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_publisher(url)

    assert "s3cret" not in str(refused.value)
