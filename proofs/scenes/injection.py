"""A server that gives a transaction up at a chosen statement of it.

At the seam by which SQLAlchemy, and we, hand statements to the driver: instead of the chosen one,
the server is told to raise the error, so that it is the server's own, with its effect on the
transaction; or the session is ended by `pg_terminate_backend` before the statement, or after it.
"""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa

How = Literal["raised", "ended before", "ended after"]

# A server of another language: nobody may look at the text
_RAISE = (
    "do $$ begin raise exception 'не удалось сериализовать доступ, deadlock detected' "
    "using errcode = '{}'; end $$"
)


class Injection:
    """On one engine, which nobody else uses meanwhile.

    Args:
        engine: Of PostgreSQL by psycopg; the sync one behind an async engine.
        killer: Another one, of somebody who may end sessions.
    """

    def __init__(self, engine: sa.Engine, killer: sa.Engine) -> None:
        self.count = 0  # statements and COMMITs since `arm`
        self.places: list[str] = []  # what they were
        self._killer = killer
        self._at = 0
        self._code: str | None = None
        self._how: How = "raised"
        dialect: Any = engine.dialect
        self._execute, self._commit = dialect.do_execute, dialect.do_commit
        dialect.do_execute = self._do_execute
        dialect.do_commit = self._do_commit

    def arm(self, at: int, how: How = "raised", code: str | None = None) -> None:
        """From now on, once: at this statement, counted from 1; 0 for none."""
        self.count, self.places = 0, []
        self._at, self._how, self._code = at, how, code

    def _do_execute(
        self, cursor: Any, statement: str, parameters: Any, context: Any = None
    ) -> None:
        if not self._reached(" ".join(statement.split())[:60]):
            self._execute(cursor, statement, parameters, context=context)
        elif self._how == "raised":
            self._execute(cursor, _RAISE.format(self._code), (), context=context)
        elif self._how == "ended before":
            self._end(cursor.connection)
            self._execute(cursor, statement, parameters, context=context)
        else:
            self._execute(cursor, statement, parameters, context=context)
            self._end(cursor.connection)

    def _do_commit(self, connection: Any) -> None:
        if not self._reached("COMMIT"):
            self._commit(connection)
        elif self._how == "raised":
            cursor = connection.cursor()
            self._execute(cursor, _RAISE.format(self._code), ())
        elif self._how == "ended before":
            self._end(connection)
            self._commit(connection)
        else:
            self._commit(connection)
            self._end(connection)

    def _reached(self, place: str) -> bool:
        self.count += 1
        self.places.append(place)
        return self.count == self._at

    def _end(self, connection: Any) -> None:
        driver = getattr(connection, "driver_connection", None) or connection
        driver = getattr(driver, "_connection", driver)  # psycopg's own, behind SQLAlchemy's
        with self._killer.connect() as killer:
            killer.execute(
                sa.text("select pg_terminate_backend(:pid, 5000)"),
                {"pid": driver.info.backend_pid},
            )
