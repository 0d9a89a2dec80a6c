"""MariaDB: each check speaks on a server that is wrong, and no check speaks on a good one."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pymysql
import pytest
import sqlalchemy as sa

from outbox_saga.testing.servers import MariaDB
from outbox_saga_relay.doctor import Limits
from tests.doctor.between import something_between
from tests.doctor.examined import Examined, examine, of, only, start_with
from tests.fixtures.databases import Database as EmptyDatabase
from tests.fixtures.services import Services
from tests.relay.house import prepare

pytestmark = pytest.mark.databases("mariadb")

AT_ONCE = Limits(long=0.0)
GALERA = Path("/usr/lib/galera/libgalera_smm.so")


def through(url: str, port: int) -> str:
    return sa.make_url(url).set(port=port).render_as_string(hide_password=False)


def test_on_a_good_server_every_check_is_made_and_none_has_anything_to_say(
    examined: Examined,
) -> None:
    report = examined.report()

    assert report.findings == ()
    assert len(report.checks) == 27


@pytest.mark.parametrize(("value", "said"), [("0", "crash of the server"), ("2", "power failure")])
def test_a_server_whose_commits_do_not_wait_for_the_disk_is_named(
    value: str, said: str, examined: Examined
) -> None:
    with examined.globally(innodb_flush_log_at_trx_commit=value):
        only(examined.found("mysql.flush_at_commit"), "error", f"is {value}", said)


def test_a_server_that_is_read_only_is_named(examined: Examined) -> None:
    with examined.globally(read_only="ON"):
        only(examined.found("mysql.writable"), "error", "read_only")
    with examined.globally(tx_read_only="ON"):
        only(examined.found("mysql.writable"), "error", "read-only by default")


def test_packets_that_are_too_small_for_a_commit_are_named(examined: Examined) -> None:
    with examined.globally(max_allowed_packet=str(4 * 1024 * 1024)):
        only(examined.found("mysql.packets"), "error", "max_allowed_packet is 4194304")

    larger = Limits(body=9 * 1024 * 1024)  # than what the server takes by default
    only(examined.found("mysql.packets", limits=larger), "error", "max_allowed_packet")


def test_positions_of_several_servers_are_named(examined: Examined) -> None:
    with examined.globally(auto_increment_increment="2"):
        only(examined.found("mysql.several_writers"), "error", "auto_increment_increment is 2")


def test_a_server_that_cuts_values_is_named(examined: Examined) -> None:
    with examined.globally(sql_mode="''"):
        only(examined.found("mysql.strict"), "warning", "not strict")


def test_a_table_that_knows_no_transactions_is_named(examined: Examined) -> None:
    examined.run("alter table outbox_saga_delayed engine = Aria")

    only(examined.found("mysql.engines"), "error", "outbox_saga_delayed", "Aria")
    assert [f.level for f in examined.found("schema.tables")] == ["error"]


@pytest.mark.parametrize(
    ("isolation", "level"),
    [("READ-UNCOMMITTED", "error"), ("SERIALIZABLE", "warning"), ("REPEATABLE-READ", "info")],
)
def test_an_isolation_that_shows_or_locks_too_much_is_named(
    isolation: str, level: str, examined: Examined
) -> None:
    with examined.globally(tx_isolation=f"'{isolation}'"):
        only(examined.found("mysql.isolation"), level, isolation)


@pytest.mark.parametrize(("waits", "said"), [("600", "10 min"), ("1", "1 s")])
def test_lock_waits_that_are_too_long_or_too_short_are_named(
    waits: str, said: str, examined: Examined
) -> None:
    with examined.globally(innodb_lock_wait_timeout=waits):
        only(examined.found("mysql.lock_waits"), "warning", said)


def test_transactions_that_may_stand_still_for_ever_are_named(examined: Examined) -> None:
    with examined.globally(idle_write_transaction_timeout="0"):
        only(examined.found("mysql.idle_in_transaction"), "warning", "not set")
        with examined.globally(idle_transaction_timeout="60"):
            assert examined.found("mysql.idle_in_transaction") == []


def test_connections_that_run_short_are_named(examined: Examined) -> None:
    found = examined.found("mysql.connections", limits=Limits(full=0.001))

    only(found, "warning", "of 200 connections")


def test_whoever_holds_a_transaction_open_is_named_with_its_connection(examined: Examined) -> None:
    with examined.owner.connect() as other:
        number = other.exec_driver_sql("select connection_id()").scalar_one()
        other.exec_driver_sql("update outbox_saga_partition_lease set revisit = 1")
        found = examined.found("mysql.old_transactions", limits=AT_ONCE)
        assert examined.found("mysql.old_transactions") == []
        other.rollback()

    assert [f.level for f in found if f"connection {number} " in f.what] == ["warning"]


def test_prepared_transactions_are_named(examined: Examined) -> None:
    url = sa.make_url(examined.owner_url)
    gone = pymysql.connect(
        host=url.host, port=url.port or 0, user=url.username, database=url.database
    )
    with gone.cursor() as cursor:
        for statement in (
            "xa start 'forgotten'",
            "update outbox_saga_partition_lease set revisit = 1",
            "xa end 'forgotten'",
            "xa prepare 'forgotten'",
        ):
            cursor.execute(statement)
    gone.close()
    try:
        found = examined.found("mysql.old_transactions")
    finally:
        examined.run("xa rollback 'forgotten'")

    only(found, "warning", "1 XA transactions are prepared")


def test_what_a_user_may_not_see_is_unknown_and_not_silent(examined: Examined) -> None:
    found = examined.found("mysql.old_transactions", url=examined.logins.url("observer"))

    only(found, "unknown", "may not ask")


def test_a_proxy_is_recognised_by_the_number_it_gives_out(examined: Examined) -> None:
    server = sa.make_url(examined.url)
    assert server.port is not None

    def own_number(piece: bytes) -> bytes:
        """The greeting with another connection's number, as MaxScale sends its own."""
        if piece[3:5] != b"\x00\x0a":  # the first packet, protocol 10
            return piece
        end = piece.index(b"\x00", 5) + 1
        return piece[:end] + struct.pack("<I", 4_000_000_000) + piece[end + 4 :]

    with something_between("127.0.0.1", server.port, own_number) as port:
        found = examined.found("mysql.proxy", url=through(examined.url, port))
    only(found, "warning", "proxy")

    with something_between("127.0.0.1", server.port, bytes) as port:
        assert examined.found("mysql.proxy", url=through(examined.url, port)) == []


def test_a_server_that_is_too_old_is_named(examined: Examined) -> None:
    server = sa.make_url(examined.url)
    assert server.port is not None
    for version, level in ((b"10.5.9", "error"), (b"10.6.9", "warning")):

        def older(piece: bytes, version: bytes = version) -> bytes:
            return piece.replace(b"10.11.", version)  # as long as what it replaces

        with something_between("127.0.0.1", server.port, older) as port:
            found = examined.found("mysql.version", url=through(examined.url, port))
        only(found, level, f"MariaDB {version.decode()[:4]}")


def test_settings_a_server_was_started_with_are_named(services: Services) -> None:
    with contextlib.ExitStack() as stack:
        server = start_with(
            services,
            MariaDB,
            stack,
            "--log-bin=log",
            "--server-id=1",
            "--sync-binlog=0",
            "--binlog-format=STATEMENT",
            "--skip-innodb-doublewrite",
        )
        url = server.create_database()
        prepare(EmptyDatabase("mariadb", url))
        report = examine(url)

    lost, stopped = of(report, "mysql.binary_log")
    assert (stopped.level, lost.level) == ("warning", "error")
    assert "sync_binlog" in stopped.what
    assert "STATEMENT" in lost.what
    flush, doublewrite = of(report, "mysql.flush_at_commit")
    assert (flush.level, doublewrite.level) == ("error", "warning")
    only(of(report, "mysql.rollback_on_timeout"), "info", "1205")


@pytest.mark.skipif(not GALERA.exists(), reason=f"no {GALERA}")
def test_a_node_of_a_cluster_is_named(services: Services) -> None:
    with contextlib.ExitStack() as stack:
        server = start_with(
            services,
            MariaDB,
            stack,
            "--wsrep-on=ON",
            f"--wsrep-provider={GALERA}",
            "--wsrep-cluster-address=gcomm://",
            "--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:0;pc.recovery=false",
            "--binlog-format=ROW",
        )
        url = server.create_database()
        prepare(EmptyDatabase("mariadb", url))

        only(of(examine(url), "mysql.several_writers"), "warning", "Galera")
