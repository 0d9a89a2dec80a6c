"""What doctor says of the user it connects as."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from outbox_saga_relay.cli import main
from outbox_saga_relay.doctor import Report
from outbox_saga_relay.roles import ROLES
from tests.doctor.examined import examine, of, only
from tests.doctor.logins import Logins

pytestmark = pytest.mark.databases("postgres18", "postgres15", "mariadb")


def said(report: Report, check: str, level: str) -> list[str]:
    return [finding.what for finding in of(report, check) if finding.level == level]


def test_a_user_with_its_role_and_no_more_has_nothing_to_mend(logins: Logins) -> None:
    for role in ROLES:
        report = examine(logins.url(role), role=role)

        assert of(report, "roles.role") == [], role
        assert of(report, "roles.powers") == [], role


@pytest.mark.parametrize("role", ["relay", "operator", "observer"])
def test_columns_that_a_role_may_not_read_are_not_taken_for_wrong(
    logins: Logins, role: str
) -> None:
    url = logins.url(role)
    assert of(examine(url, role=role), "schema.tables") == []
    checked = CliRunner().invoke(main, ["db", "check", "--database-url", url])
    assert (checked.exit_code, checked.output) == (0, "no difference\n")


@pytest.mark.parametrize("role", ["operator", "observer"])
def test_lists_want_an_operator_and_status_only_an_observer(logins: Logins, role: str) -> None:
    url = logins.url(role)
    ends = {
        command: CliRunner().invoke(main, [*command, "--database-url", url]).exit_code
        for command in [("dead-letter", "list"), ("waiting", "list"), ("saga", "list"), ("audit",)]
    }
    assert set(ends.values()) == ({0} if role == "operator" else {1}), ends
    assert CliRunner().invoke(main, ["status", "--database-url", url]).exit_code == 0


def test_a_right_that_is_missing_is_an_error_and_one_too_many_a_warning(logins: Logins) -> None:
    report = examine(logins.url("service"), role="consumer")
    assert any("outbox_saga_inbox," in what for what in said(report, "roles.role", "error"))
    assert said(report, "roles.role", "warning") == []

    report = examine(logins.url("consumer"), role="service")
    assert said(report, "roles.role", "error") == []
    assert any("outbox_saga_inbox," in what for what in said(report, "roles.role", "warning"))


def test_columns_that_are_missing_or_too_many_are_named(logins: Logins) -> None:
    column = "`partition`" if logins.dialect == "mariadb" else "partition"
    url = logins.url("relay", also=f"update (epoch, {column}) on outbox_saga_partition_lease")

    (found,) = of(examine(url, role="relay"), "roles.role")

    assert found.what == (
        "this user may UPDATE (partition) on outbox_saga_partition_lease, which relay does not "
        "need"
    )


def test_the_owner_is_told_to_give_programs_users_of_their_own(logins: Logins) -> None:
    owner = logins.owner.url.render_as_string(hide_password=False)

    report = examine(owner, role="relay")

    only(of(report, "roles.powers"), "warning", "superuser")
    only(of(report, "roles.role"), "warning", "everything with every table")


def test_an_owner_who_is_no_superuser_is_recognised(logins: Logins) -> None:
    if logins.dialect == "mariadb":
        url = logins.url(also=f"all on `{logins.owner.url.database}`.*")
    else:
        url = logins.url("relay")
        user = url.partition("//")[2].partition("@")[0]
        with logins.owner.begin() as connection:
            connection.exec_driver_sql(f"alter table outbox_saga_saga owner to {user}")

    only(of(examine(url), "roles.powers"), "warning", "may do everything with our tables")


def test_what_a_role_may_not_read_is_unknown_and_not_silent(logins: Logins) -> None:
    report = examine(logins.url("service"), role="service")

    unknown = {finding.check for finding in report.findings if finding.level == "unknown"}
    assert {"backlog.outbox", "backlog.blocked_keys", "backlog.sagas"} <= unknown
    assert all(
        "may not ask" in finding.what
        for finding in report.findings
        if finding.check == "backlog.outbox"
    )
