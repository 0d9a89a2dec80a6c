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

# COMMIT itself fails with it, and the transaction is over, as after a real failure to serialize
_DOOM = """
create table scene_doom (code text);
create function scene_doomed() returns trigger language plpgsql as $$ begin
  raise exception 'не удалось сериализовать доступ' using errcode = new.code; end $$;
create constraint trigger scene_doomed after insert on scene_doom
  deferrable initially deferred for each row execute function scene_doomed();
"""


def prepare(engine: sa.Engine) -> None:
    """What makes a COMMIT fail; once in each database."""
    with engine.begin() as connection:
        connection.exec_driver_sql(_DOOM)


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
            self._end(cursor)
            self._execute(cursor, statement, parameters, context=context)
        else:
            self._execute(cursor, statement, parameters, context=context)
            self._end(cursor)

    def _do_commit(self, connection: Any) -> None:
        if not self._reached("COMMIT"):
            self._commit(connection)
        elif self._how == "raised":
            self._execute(
                connection.cursor(), f"insert into scene_doom values ('{self._code}')", ()
            )
            self._commit(connection)
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

    def _end(self, of: Any) -> None:
        # psycopg's own connection, behind what SQLAlchemy puts before async ones, or a cursor
        driver = getattr(of, "_connection", None) or getattr(of, "connection", None) or of
        with self._killer.connect() as killer:
            killer.execute(
                sa.text("select pg_terminate_backend(:pid, 5000)"),
                {"pid": driver.info.backend_pid},
            )
