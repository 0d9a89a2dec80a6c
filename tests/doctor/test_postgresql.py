"""PostgreSQL: each check speaks on a server that is wrong, and no check speaks on a good one."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.testing.servers import Postgres18
from outbox_saga_relay.doctor import Limits
from tests.doctor.between import something_between
from tests.doctor.examined import Examined, examine, of, only, start_with
from tests.fixtures.databases import Database as EmptyDatabase
from tests.fixtures.services import PrivateServer, Services
from tests.relay.house import prepare

pytestmark = pytest.mark.databases("postgres18", "postgres15")

AT_ONCE = Limits(long=0.0)


def plain(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def through(url: str, port: int) -> str:
    return sa.make_url(url).set(port=port).render_as_string(hide_password=False)


def test_on_a_good_server_every_check_is_made_and_none_has_anything_to_say(
    examined: Examined,
) -> None:
    report = examined.report()

    assert report.findings == ()
    assert len(report.checks) == 29


def test_a_database_whose_commits_do_not_wait_for_the_disk_is_named(examined: Examined) -> None:
    examined.set(synchronous_commit="off")

    only(examined.found("postgresql.synchronous_commit"), "error", "off", "database")


def test_another_role_whose_commits_do_not_wait_for_the_disk_is_named(examined: Examined) -> None:
    other = f"{examined.logins.prefix}_service"
    examined.run(
        f"alter role {other} in database {examined.database} set synchronous_commit = off"
    )

    only(examined.found("postgresql.synchronous_commit"), "error", "off", other)


def test_a_server_that_may_lose_what_it_wrote_is_named(database: EmptyDatabase) -> None:
    prepare(database)

    report = examine(database.url)  # the tests' own servers are fast, not safe

    error, warning = of(report, "postgresql.fsync")
    assert (error.level, warning.level) == ("error", "warning")
    assert "fsync" in error.what
    assert "full_page_writes" in warning.what


def test_a_database_that_is_read_only_is_named(examined: Examined) -> None:
    examined.set(default_transaction_read_only="on")
    found = examined.found("postgresql.writable")
    examined.run(
        "set default_transaction_read_only = off",
        f"alter database {examined.database} reset default_transaction_read_only",
    )

    only(found, "error", "read-only")


@pytest.mark.databases("postgres18")
def test_a_standby_is_named(private_server: PrivateServer) -> None:
    server: Any = private_server(Postgres18)
    url = server.create_database()
    prepare(EmptyDatabase("postgres18", url))
    server.stop()
    signal = server.place.directory / "data" / "standby.signal"
    signal.touch()
    server.start()

    only(of(examine(url), "postgresql.writable"), "error", "standby")


@pytest.mark.databases("postgres18")
def test_standbys_that_are_not_synchronous_or_not_there_are_named(
    private_server: PrivateServer,
) -> None:
    server: Any = private_server(Postgres18)
    url = server.create_database()
    prepare(EmptyDatabase("postgres18", url))
    standby = psycopg.connect(plain(server.url), replication="true", autocommit=True)
    standby.execute("IDENTIFY_SYSTEM")

    only(of(examine(url), "postgresql.standbys"), "info", "1 standbys", "none is synchronous")

    standby.close()
    # commits would wait from here on
    server.execute("alter system set synchronous_standby_names = 'nobody'")
    server.restart()
    only(of(examine(url), "postgresql.standbys"), "error", "'nobody'", "every COMMIT waits")
    local = sa.make_url(url).update_query_dict({"options": "-c synchronous_commit=local"})
    only(
        of(examine(local.render_as_string()), "postgresql.synchronous_commit"), "warning", "local"
    )


@pytest.mark.databases("postgres18")
def test_settings_of_a_whole_server_that_are_wrong_are_named(services: Services) -> None:
    wrong = {
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "autovacuum": "off",
        "track_counts": "off",
        "max_notify_queue_pages": "64",  # the least: half a MiB
    }
    arguments = [word for name, value in wrong.items() for word in ("-c", f"{name}={value}")]
    with contextlib.ExitStack() as stack:
        server = start_with(services, Postgres18, stack, *arguments)
        url = server.create_database()
        prepare(EmptyDatabase("postgres18", url))
        with notifications_that_pile_up(url, share=0.2):
            some = examine(url)
        with notifications_that_pile_up(url, share=0.6):
            many = examine(url)

    only(of(some, "postgresql.wal_level"), "info", "minimal")
    assert [f.level for f in of(some, "postgresql.autovacuum")] == ["warning", "warning"]
    only(of(some, "postgresql.notification_queue"), "warning", "COMMITs that notify fail")
    only(of(many, "postgresql.notification_queue"), "error", "COMMITs that notify fail")


@contextlib.contextmanager
def notifications_that_pile_up(url: str, *, share: float) -> Iterator[None]:
    """As much of the queue is full, since a listener stands in a transaction."""
    with psycopg.connect(plain(url), autocommit=True) as listener:
        listener.execute("listen orders")
        listener.execute("begin")
        listener.execute("select 1")
        with psycopg.connect(plain(url), autocommit=True) as notifier:
            while True:
                found = notifier.execute("select pg_notification_queue_usage()").fetchone()
                assert found is not None
                if found[0] > share:
                    break
                notifier.execute(
                    "select pg_notify('orders', repeat('x', 7000) || n) "
                    "from generate_series(1, 3) n"
                )
        yield
        listener.execute("rollback")


@pytest.mark.databases("postgres18")
def test_an_encoding_without_all_characters_is_named(examined: Examined) -> None:
    latin = f"{examined.database}_latin"
    examined.run(f"create database {latin} encoding 'LATIN1' template template0 locale 'C'")
    url = sa.make_url(examined.owner_url).set(database=latin).render_as_string()
    try:
        only(of(examine(url), "postgresql.encoding"), "error", "LATIN1")
    finally:
        examined.run(f"drop database {latin}")


def test_transactions_that_may_stand_still_for_ever_are_named(examined: Examined) -> None:
    examined.set(idle_in_transaction_session_timeout="0")

    only(examined.found("postgresql.idle_in_transaction"), "warning", "not set")


def test_a_lock_timeout_that_is_too_short_or_missing_is_named(examined: Examined) -> None:
    examined.set(lock_timeout="'50ms'")
    only(examined.found("postgresql.lock_timeout"), "warning", "50 ms")

    examined.set(lock_timeout="0")
    only(examined.found("postgresql.lock_timeout"), "info", "lock_timeout")

    examined.set(statement_timeout="'30s'")
    assert examined.found("postgresql.lock_timeout") == []


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_isolation_at_which_commits_fail_when_they_meet_is_named(
    level: str, examined: Examined
) -> None:
    examined.set(default_transaction_isolation=f"'{level}'")

    only(examined.found("postgresql.isolation"), "warning", level, "40001")


def test_connections_that_run_short_are_named(examined: Examined) -> None:
    found = examined.found("postgresql.connections", limits=Limits(full=0.001))
    only(found, "warning", "of 197 connections of the server")

    examined.run(f"alter database {examined.database} connection limit 4")
    found = examined.found("postgresql.connections", limits=Limits(full=0.25))
    only(found, "warning", "1 of 4 connections of this database")


def test_a_pooler_is_recognised_by_the_numbers_it_gives_out(examined: Examined) -> None:
    server = sa.make_url(examined.url)
    assert server.port is not None

    def own_number(piece: bytes) -> bytes:
        """BackendKeyData with another process id, as PgBouncer sends its own."""
        head = b"K" + struct.pack("!i", 12)
        before, found, after = piece.partition(head)
        return before + found + (struct.pack("!i", 1) + after[4:] if found else after)

    with something_between("127.0.0.1", server.port, own_number) as port:
        found = examined.found("postgresql.pooler", url=through(examined.url, port))
    only(found, "warning", "pooler", "prepares statements")

    with something_between("127.0.0.1", server.port, bytes) as port:
        assert examined.found("postgresql.pooler", url=through(examined.url, port)) == []


@pytest.mark.databases("postgres18")
def test_a_server_that_is_too_old_is_named(examined: Examined) -> None:
    server = sa.make_url(examined.url)
    assert server.port is not None
    for version, level in ((b"12", "error"), (b"14", "warning")):

        def older(piece: bytes, version: bytes = version) -> bytes:
            return piece.replace(b"PostgreSQL 18", b"PostgreSQL " + version)

        with something_between("127.0.0.1", server.port, older) as port:
            found = examined.found("postgresql.version", url=through(examined.url, port))
        only(found, level, f"PostgreSQL {version.decode()}.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("set cache 50", "CACHE 50"),
        ("set increment by -1 set minvalue -100", "INCREMENT BY -1"),
        ("set cycle", "CYCLE"),
    ],
)
def test_positions_out_of_order_are_named(change: str, said: str, examined: Examined) -> None:
    examined.run(f"alter table outbox_saga_outbox alter column position {change}")

    only(examined.found("postgresql.positions"), "error", "outbox_saga_outbox", said)


def test_a_table_that_is_never_vacuumed_is_named(examined: Examined) -> None:
    examined.run("alter table outbox_saga_outbox set (autovacuum_enabled = false)")

    only(examined.found("postgresql.autovacuum"), "warning", "outbox_saga_outbox")


def test_whoever_holds_a_transaction_open_is_named_with_its_pid(examined: Examined) -> None:
    with psycopg.connect(plain(examined.owner_url)) as other:
        other.execute("create table something (x int)")
        pid = other.info.backend_pid
        found = examined.found("postgresql.old_transactions", limits=AT_ONCE)
        assert examined.found("postgresql.old_transactions") == []  # for moments only, so far
        other.rollback()

    assert [f.level for f in found if f"pid {pid} " in f.what] == ["warning"]


def test_a_prepared_transaction_is_named(examined: Examined) -> None:
    with psycopg.connect(plain(examined.owner_url), autocommit=True) as other:
        other.execute("begin")
        other.execute("create table something (x int)")
        other.execute("prepare transaction 'forgotten'")
        found = examined.found("postgresql.old_transactions", limits=AT_ONCE)
        other.execute("rollback prepared 'forgotten'")

    assert [f.level for f in found if "'forgotten'" in f.what] == ["warning"]


def test_what_a_user_may_not_see_is_unknown_and_not_silent(examined: Examined) -> None:
    url = examined.logins.url("observer")

    with psycopg.connect(plain(examined.owner_url)) as other:
        other.execute("select 1")
        found = examined.found("postgresql.old_transactions", url=url)

    only(found, "unknown", "may not see the transactions of")


def test_a_replication_slot_that_nobody_uses_is_named(examined: Examined) -> None:
    slot = f"slot_{examined.database}"
    examined.run(f"select pg_create_physical_replication_slot('{slot}', true)")
    try:
        only(examined.found("postgresql.replication_slots"), "warning", slot, "nobody uses")
    finally:
        examined.run(f"select pg_drop_replication_slot('{slot}')")


def test_a_replication_slot_that_holds_back_vacuum_is_named(examined: Examined) -> None:
    slot = f"slot_{examined.database}"
    examined.run(f"select pg_create_physical_replication_slot('{slot}', true)")
    try:
        with psycopg.connect(
            plain(examined.owner_url), replication="true", autocommit=True
        ) as standby:
            where = standby.execute("IDENTIFY_SYSTEM").fetchone()
            assert where is not None
            raw = standby.pgconn
            start = where[2].decode() if isinstance(where[2], bytes) else where[2]
            raw.send_query(f"START_REPLICATION SLOT {slot} PHYSICAL {start}".encode())
            answer = raw.get_result()
            assert answer is not None
            assert answer.status == psycopg.pq.ExecStatus.COPY_BOTH, answer.error_message
            # hot standby feedback: its oldest transaction, as a standby with a long query sends it
            raw.put_copy_data(struct.pack("!cqiiii", b"h", 0, oldest_of(examined), 0, 0, 0))
            raw.flush()
            wait_for_xmin(examined, slot)
            found = examined.found("postgresql.replication_slots", limits=Limits(xids=0))
            assert examined.found("postgresql.replication_slots") == []
            raw.finish()  # in the middle of the stream, from which psycopg knows no way back
    finally:
        examined.run(
            f"select pg_terminate_backend(active_pid, 10000) from pg_replication_slots "
            f"where slot_name = '{slot}' and active",
            f"select pg_drop_replication_slot('{slot}')",
        )

    only(found, "warning", slot, "holds back vacuum")


def oldest_of(examined: Examined) -> int:
    with examined.owner.connect() as connection:
        found = connection.exec_driver_sql("select pg_snapshot_xmin(pg_current_snapshot())::text")
        return int(found.scalar_one())


def wait_for_xmin(examined: Examined, slot: str) -> None:
    with psycopg.connect(plain(examined.owner_url), autocommit=True) as connection:
        for _ in range(1000):
            found = connection.execute(
                "select xmin from pg_replication_slots where slot_name = %s", [slot]
            ).fetchone()
            if found is not None and found[0] is not None:
                return
            connection.execute("select pg_sleep(0.01)")
    raise AssertionError("the server never took the standby's feedback")


@pytest.mark.parametrize(("shift", "said"), [(60, "60 s ahead of"), (-600, "10 min behind")])
def test_a_clock_that_differs_is_named(shift: float, said: str, examined: Examined) -> None:
    found = examined.found("database.clock", clock=Clock(shift=shift))

    only(found, "warning", said)
