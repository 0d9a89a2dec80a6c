"""What each role may do with each table: everything in this matrix, and nothing that is not.

Every verb is tried on every column of every table by a user who has the role and nothing else.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError

from outbox_saga.breaker import Breaker
from outbox_saga.database import Database
from outbox_saga.errors import ConfigurationError
from outbox_saga.queries import breakers
from outbox_saga.queries.clock import DATABASE_CLOCK
from outbox_saga.tables import PREFIX, tables_in
from outbox_saga_relay.cli import main
from outbox_saga_relay.doctor import examine_database
from outbox_saga_relay.roles import DIALECTS, ROLES, rights_of, roles_sql
from outbox_saga_relay.roles.rights import VERBS, every_column
from tests.doctor.logins import Logins, run_script
from tests.fixtures.databases import Database as EmptyDatabase

# S(elect), I(nsert), U(pdate), D(elete); small letters: of some columns only, which stand below.
# L: where rows are the locks of keys. P: where the archive has partitions.
MATRIX = """
                  service  consumer  orchestrator  relay  operator  observer
outbox            si       si        si            SiuD   SI        s
delayed           sI       sI        sI            SuD    S         s
archive           s        s         s             SID    S         s
archive_rest      -        -         -             P      -         -
key_lock          L        L         L             L      L         S
blocked_key       -        -         -             SIUD   SuD       S
dead_letter       s        s         s             sI     SuD       s
partition_lease   -        -         -             Su     Su        S
inbox             -        SI        -             SD     SI        s
inbox_waiting     -        SIUD      -             -      SUD       s
inbox_claim       -        SIUD      -             -      SD        S
barrier           -        SIu       -             sD     S         s
reply             S        SIu       -             SD     S         s
breaker           -        -         SIU           -      Su        S
saga              sIu      sIu       SIu           sD     Su        s
saga_history      I        I         SI            sD     SI        S
process           -        SIUD      SIUD          SIUD   SIU       S
operator_action   -        -         -             -      SI        s
version           S        S         S             S      S         S
"""

WRITES = ("service", "consumer", "orchestrator")
MESSAGE = "id partition topic key headers body created_at"
MOVES = (
    "version shape state revision data progress reason due_at owner lease_until epoch "
    "updated_at ended_at deaths"
)
SOME = {
    **{(role, "outbox", "SELECT"): "id" for role in WRITES},
    **{(role, "outbox", "INSERT"): MESSAGE for role in (*WRITES, "relay")},
    **{(role, "delayed", "SELECT"): "id" for role in WRITES},
    **{(role, "archive", "SELECT"): "id" for role in WRITES},
    **{(role, "dead_letter", "SELECT"): "id" for role in (*WRITES, "relay")},
    **{(role, "saga", "SELECT"): "id input_hash" for role in ("service", "consumer")},
    **{(role, "saga", "UPDATE"): "updated_at" for role in ("service", "consumer")},
    **{(role, "saga", "UPDATE"): MOVES for role in ("orchestrator", "operator")},
    ("relay", "delayed", "UPDATE"): "due_at",
    ("relay", "outbox", "UPDATE"): "created_at",
    ("relay", "partition_lease", "UPDATE"): "owner epoch until revisit",
    ("operator", "partition_lease", "UPDATE"): "revisit",
    ("operator", "blocked_key", "UPDATE"): "until",
    ("operator", "dead_letter", "UPDATE"): "attempts",
    ("observer", "outbox", "SELECT"): "position id partition topic key created_at",
    ("observer", "delayed", "SELECT"): "id due_at partition topic key created_at",
    ("observer", "archive", "SELECT"): ("published_at id position partition topic key created_at"),
    ("observer", "dead_letter", "SELECT"): (
        "id position partition topic key created_at died_at attempts error_code error error_class"
    ),
    ("observer", "inbox", "SELECT"): "consumer message_id handled_at",
    ("observer", "inbox_waiting", "SELECT"): (
        "position consumer message_id topic key arrived_at until failed_at attempts error_code "
        "error error_class owner lease_until"
    ),
    ("consumer", "barrier", "UPDATE"): "state answer updated_at",
    ("consumer", "reply", "UPDATE"): "outcome answer answered_at",
    ("observer", "reply", "SELECT"): "request_id outcome answered_at",
    ("operator", "breaker", "UPDATE"): "failures until probe_until trips opened_at changed_at",
    ("relay", "barrier", "SELECT"): "saga_id step generation updated_at",
    ("relay", "saga", "SELECT"): "id business_key state ended_at",
    ("relay", "saga_history", "SELECT"): "saga_id",
    ("observer", "barrier", "SELECT"): "saga_id step generation state updated_at",
    ("observer", "saga", "SELECT"): (
        "id source name version shape business_key correlation_id state revision reason due_at "
        "owner lease_until epoch started_at updated_at ended_at deaths"
    ),
    ("observer", "operator_action", "SELECT"): "id at operator action subject reason",
}

# What no role but those that carry it may read: what users put into messages and sagas
PAYLOAD = {
    "outbox": {"headers", "body"},
    "delayed": {"headers", "body"},
    "archive": {"headers", "body"},
    "dead_letter": {"headers", "body", "trace"},
    "inbox_waiting": {"headers", "body", "trace"},
    "barrier": {"answer"},
    "reply": {"answer"},
    "saga": {"data", "progress"},
    "operator_action": {"detail"},
}

Cells = set[tuple[str, str, str]]


def expected(role: str, dialect: str) -> Cells:
    """(table, verb, column) of everything the role may do, as the matrix says."""
    header, *lines = MATRIX.strip().splitlines()
    names: list[str] = [*header.split()]
    column = names.index(role) + 1
    cells: Cells = set()
    for line in lines:
        table, letters = line.split()[0], line.split()[column]
        if letters == "L":  # whoever publishes locks these rows, where rows are the locks
            letters = "" if dialect == "postgresql" else "S"
        if letters == "P":
            letters = "SD" if dialect == "postgresql" else ""
        for verb in VERBS:
            columns: frozenset[str] | list[str]
            if verb[0] in letters:
                columns = every_column(PREFIX + table)
            elif verb[0].lower() in letters:
                columns = SOME[role, table, verb].split()
            else:
                columns = []
            cells |= {(table, verb, name) for name in columns}
    return cells


def attempt(engine: sa.Engine, dialect: str, table: str, verb: str, column: str) -> str:
    """The statement that needs this right, and touches no row."""
    preparer = engine.dialect.identifier_preparer
    t, c = PREFIX + table, preparer.quote(column)
    nowhere = "where false" if dialect == "postgresql" else "from dual where 1 = 0"
    none = "where false" if dialect == "postgresql" else "where 1 = 0"
    return {
        "SELECT": f"select {c} from {t} {none}",
        "INSERT": f"insert into {t} ({c}) "
        + ("overriding system value " if dialect == "postgresql" else "")
        + f"select null {nowhere}",
        "UPDATE": f"update {t} set {c} = "
        + ("default" if dialect == "postgresql" else "null")
        + f" {none}",
        "DELETE": f"delete from {t} {none}",
    }[verb]


def is_denied(error: DBAPIError) -> bool:
    """By code: 42501 insufficient_privilege; 1142 and 1143 for a table and a column."""
    original = error.orig
    return getattr(original, "sqlstate", None) == "42501" or (
        bool(getattr(original, "args", ())) and original.args[0] in (1142, 1143)  # type: ignore[union-attr]
    )


def is_allowed(error: DBAPIError) -> bool:
    """1364: the other columns have no default; asked after the rights, and of rows only."""
    return error.orig is not None and error.orig.args[0] == 1364


def allowed(engine: sa.Engine, dialect: str) -> Cells:
    """Everything that the server lets this user do with our tables."""
    tables = [line.split()[0] for line in MATRIX.strip().splitlines()[1:]]
    if dialect != "postgresql":
        tables.remove("archive_rest")
    cells: Cells = set()
    with engine.connect() as connection:
        for table in tables:
            for verb in VERBS:
                for column in every_column(PREFIX + table):
                    try:
                        connection.exec_driver_sql(attempt(engine, dialect, table, verb, column))
                    except DBAPIError as error:
                        if is_denied(error):
                            continue
                        if not is_allowed(error):
                            raise
                    finally:
                        connection.rollback()
                    cells.add((table, verb, column))
    return cells


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
def test_each_role_may_do_what_the_matrix_says_and_nothing_else(logins: Logins) -> None:
    may = {role: allowed(logins.engine(role), logins.dialect) for role in ROLES}
    should = {role: expected(role, logins.dialect) for role in ROLES}

    for role in ROLES:
        assert sorted(may[role] - should[role]) == [], f"{role} may do more than the matrix says"
        assert sorted(should[role] - may[role]) == [], f"{role} may not do what the matrix says"


@pytest.mark.databases("postgres18", "mariadb")
def test_a_user_without_a_role_may_do_nothing(logins: Logins) -> None:
    if logins.dialect == "postgresql":
        assert allowed(logins.engine(), logins.dialect) == set()
    else:  # where nothing is allowed in a database, one may not enter it
        with pytest.raises(DBAPIError) as refused, logins.engine().connect():
            pass
        assert refused.value.orig is not None
        assert refused.value.orig.args[0] == 1044


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_observer_reads_no_payload(dialect: str) -> None:
    may = rights_of("observer", dialect)

    for table, hidden in PAYLOAD.items():
        assert may[PREFIX + table]["SELECT"].isdisjoint(hidden), table
    assert {verb for verbs in may.values() for verb in verbs} == {"SELECT"}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_read_back_from_the_sql_is_what_the_matrix_says(role: str, dialect: str) -> None:
    read = {
        (table.removeprefix(PREFIX), verb, column)
        for table, verbs in rights_of(role, dialect).items()
        for verb, columns in verbs.items()
        for column in columns
    }

    locks = {("key_lock", "UPDATE", "number")} if dialect == "mysql" else set()
    assert read - locks == expected(role, dialect)


@pytest.mark.databases("postgres18", "mariadb")
def test_the_sql_can_run_again_and_ends_at_the_same_rights(logins: Logins) -> None:
    engine = logins.engine("relay")

    logins.grant()

    assert allowed(engine, logins.dialect) == expected("relay", logins.dialect)


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
def test_an_orchestrator_may_count_a_breakers_first_failure_and_send_its_probe(
    logins: Logins,
) -> None:
    tables, rule = tables_in(), Breaker("psp", failures=1, seconds=0.000001)
    with logins.engine("orchestrator").begin() as connection:
        for _ in range(2):
            stand = breakers.lock(connection, tables, DATABASE_CLOCK, "psp")
            breakers.note(connection, tables, DATABASE_CLOCK, stand.failed(rule))
        assert breakers.take_probe(connection, tables, DATABASE_CLOCK, "psp", 30.0)
        breakers.give_back(connection, tables, DATABASE_CLOCK, ["psp"])


@pytest.mark.databases("postgres18", "postgres15")
def test_running_it_again_takes_away_what_an_older_version_granted(logins: Logins) -> None:
    with logins.owner.begin() as connection:
        connection.exec_driver_sql(
            f"grant delete, update (body) on outbox_saga_dead_letter to {logins.prefix}_service"
        )

    logins.grant()

    may = allowed(logins.engine("service"), logins.dialect)
    assert may == expected("service", logins.dialect)


@pytest.mark.parametrize("schema", ["orders", "Orders"])
@pytest.mark.databases("postgres18")
def test_roles_in_a_schema_of_their_own_reach_the_tables_there(
    database: EmptyDatabase, schema: str
) -> None:
    from outbox_saga_migrations import upgrade

    owner = sa.create_engine(database.url, poolclass=sa.NullPool)
    with owner.begin() as connection:
        upgrade(connection, schema=schema)
        upgrade(connection)
    logins = Logins(database)
    run_script(logins.owner, f"drop owned by {logins.prefix}_observer")
    logins.grant(schema)

    with logins.engine("observer").connect() as connection:
        assert connection.exec_driver_sql(
            f'select count(*) from "{schema}".outbox_saga_saga'
        ).all()
        connection.rollback()
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("select count(*) from public.outbox_saga_saga")

    looked = Database(logins.url("relay"), schema=schema)
    right = examine_database(looked, role="relay")
    looked.dispose()
    assert [f.level for f in right.findings if f.check == "roles.role"] == []
    looked = Database(logins.url(), schema=schema)
    without = examine_database(looked, role="relay")
    looked.dispose()
    assert {f.level for f in without.findings if f.check == "roles.role"} == {"error"}

    logins.close()


@pytest.mark.parametrize("prefix", ["", "9", "Orders", "a;drop", "x" * 41, "ä", "a-b"])
def test_a_prefix_that_would_have_to_be_quoted_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot begin a role's name"):
        roles_sql("postgresql", prefix=prefix)


def test_sqlite_has_no_roles() -> None:
    with pytest.raises(ConfigurationError, match="sqlite has no roles"):
        roles_sql("sqlite")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_command_writes_the_sql_with_nothing_left_to_fill_in(dialect: str) -> None:
    options = ["--dialect", dialect, "--schema", "orders", "--prefix", "orders"]

    written = CliRunner().invoke(main, ["db", "roles", *options])

    assert written.exit_code == 0, written.output
    assert written.stdout == roles_sql(dialect, schema="orders", prefix="orders")
    assert "{" not in written.stdout
    assert "orders_relay" in written.stdout


def test_the_command_takes_the_dialect_from_the_url_and_says_when_it_has_none() -> None:
    by_url = CliRunner().invoke(main, ["db", "roles", "-d", "mysql://somebody@nowhere/orders"])
    by_nothing = CliRunner().invoke(main, ["db", "roles"], env={"OUTBOX_SAGA_DATABASE_URL": None})

    assert by_url.stdout == roles_sql("mysql")
    assert by_nothing.exit_code == 2
    assert "--dialect" in by_nothing.stderr
