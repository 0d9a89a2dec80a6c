"""Users with least-privilege roles, on a database with our tables in it."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa

from outbox_saga_relay.roles import ROLES, roles_sql
from tests.fixtures.databases import Database as EmptyDatabase

DIALECTS = {"postgres18": "postgresql", "postgres15": "postgresql", "mariadb": "mariadb"}


def run_script(engine: sa.Engine, script: str) -> None:
    """As psql, or the client of MariaDB, would: statement by statement, all of them."""
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.autocommit = True
            raw.execute(script)
        return
    from pymysql.constants import CLIENT

    several = sa.create_engine(
        engine.url, poolclass=sa.NullPool, connect_args={"client_flag": CLIENT.MULTI_STATEMENTS}
    )
    with several.connect() as connection:
        cursor: Any = connection.connection.cursor()
        cursor.execute(script)
        while cursor.nextset():
            pass
        cursor.close()


class Logins:
    """The roles under a prefix of this test's own, and users that have them."""

    def __init__(self, database: EmptyDatabase) -> None:
        self.dialect = DIALECTS[database.name]
        self.prefix = f"t{secrets.token_hex(4)}"
        self.owner = sa.create_engine(database.url, poolclass=sa.NullPool)
        self._users: list[str] = []
        self.grant()

    def grant(self, schema: str | None = None) -> None:
        """What `outbox-saga db roles` prints has been run by the owner."""
        run_script(self.owner, roles_sql(self.dialect, schema=schema, prefix=self.prefix))

    def url(self, *roles: str, also: str = "") -> str:
        """The database as a user with these roles, and no other right but `also`: rights and the
        table, as in `SELECT, INSERT ON till`.
        """
        user = f"{self.prefix}u{len(self._users)}"
        self._users.append(user)
        postgresql = self.dialect == "postgresql"
        statements = [f"create user {user}"]
        statements += [f"grant {self.prefix}_{role} to {user}" for role in roles]
        if not postgresql and roles:
            # a user of MariaDB has one default role: one that has all of these
            union = f"{user}r"
            statements = [f"create user {user}", f"create role {union}"]
            statements += [f"grant {self.prefix}_{role} to {union}" for role in roles]
            statements += [f"grant {union} to {user}", f"set default role {union} for {user}"]
        if also:
            statements.append(f"grant {also} to {user}")
        with self.owner.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        return self.owner.url.set(username=user).render_as_string(hide_password=False)

    def engine(self, *roles: str, also: str = "") -> sa.Engine:
        """Such a user's engine."""
        return sa.create_engine(self.url(*roles, also=also), poolclass=sa.NullPool)

    def close(self) -> None:
        """Neither users nor roles are left: they belong to the server, which other tests use."""
        with self.owner.begin() as connection:
            if self.dialect == "postgresql":
                everybody = [*self._users, *(f"{self.prefix}_{role}" for role in ROLES)]
                for name in everybody:
                    connection.exec_driver_sql(f"drop owned by {name}")
                    connection.exec_driver_sql(f"drop role {name}")
                return
            for user in self._users:
                connection.exec_driver_sql(f"drop user {user}")
                connection.exec_driver_sql(f"drop role if exists {user}r")
            for role in ROLES:
                connection.exec_driver_sql(f"drop role {self.prefix}_{role}")
