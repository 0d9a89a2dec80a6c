"""What a database says of its own tables, in its own words, so that two can be compared.

Nothing here goes through our code or SQLAlchemy's reflection: a mistake there would hide here.
"""

from __future__ import annotations

import re

import sqlalchemy as sa

Facts = dict[str, object]

COLUMNS = sa.text("""
    select a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
           case when a.attcollation <> t.typcollation then c.collname end,
           pg_get_expr(d.adbin, d.adrelid)
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    left join pg_collation c on c.oid = a.attcollation
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = cast(:table as regclass) and a.attnum > 0 and not a.attisdropped
    order by a.attnum
""")
CONSTRAINTS = sa.text("""
    select conname, pg_get_constraintdef(oid) from pg_constraint
    where conrelid = cast(:table as regclass) order by 1
""")
INDEXES = sa.text("""
    select c.relname, pg_get_indexdef(i.indexrelid, 0, true), i.indisunique, am.amname,
           array(select pg_get_indexdef(i.indexrelid, n, true)
                 from generate_series(1, i.indnkeyatts) n)
    from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am am on am.oid = c.relam
    where i.indrelid = cast(:table as regclass) order by 1
""")
STORAGE = sa.text(
    "select reloptions, relpersistence, relkind from pg_class where oid = cast(:table as regclass)"
)
SEQUENCES = sa.text("""
    select sequencename, data_type::text, start_value, increment_by, cycle, cache_size
    from pg_sequences where schemaname = :schema order by 1
""")


def facts(connection: sa.Connection, schema: str | None = None) -> Facts:
    """Every table of ours in the schema, but for the version table, which has no definition."""
    kind = connection.dialect.name
    if kind == "postgresql":
        found = _postgresql(connection, schema or "public")
    elif kind == "sqlite":
        found = _sqlite(connection, schema or "main")
    else:
        found = _mariadb(connection, schema)
    assert all("outbox_saga" in name for name in found)
    return {name: what for name, what in found.items() if "outbox_saga_version" not in name}


def table_names(connection: sa.Connection, schema: str | None = None) -> set[str]:
    """All tables of the schema."""
    return set(sa.inspect(connection).get_table_names(schema=schema))


def _postgresql(connection: sa.Connection, schema: str) -> Facts:
    found: Facts = {}
    names = connection.scalars(
        sa.text("select tablename from pg_tables where schemaname = :schema"), {"schema": schema}
    )
    for name in names.all():
        table = {"table": f"{schema}.{name}"}
        found[name] = {
            "columns": connection.execute(COLUMNS, table).all(),
            "constraints": connection.execute(CONSTRAINTS, table).all(),
            "indexes": [
                (index[0], index[1].replace(f"{schema}.", ""), *index[2:])
                for index in connection.execute(INDEXES, table)
            ],
            "storage": connection.execute(STORAGE, table).all(),
        }
    found["outbox_saga sequences"] = connection.execute(SEQUENCES, {"schema": schema}).all()
    return found


def _sqlite(connection: sa.Connection, schema: str) -> Facts:
    rows = connection.exec_driver_sql(
        f"select name, type, sql from {schema}.sqlite_master where name like 'outbox_saga%'"
    ).all()
    found: Facts = {}
    for name, type_, sql in rows:
        if type_ != "table":
            found[name] = (type_, _one_line(sql))
            continue
        # not its text: ALTER TABLE ... ADD COLUMN writes at the end of it, behind the constraints
        columns = connection.exec_driver_sql(f"pragma {schema}.table_xinfo({name})").all()
        keys = connection.exec_driver_sql(f"pragma {schema}.index_list({name})").all()
        found[name] = (
            type_,
            [tuple(column) for column in columns],
            sorted((key[1], key[2], key[3]) for key in keys),
            "AUTOINCREMENT" in sql.upper(),
        )
    return found


def _one_line(sql: str | None) -> str:
    spaces = re.sub(r"\s+", " ", (sql or "").replace(" IF NOT EXISTS", ""))
    return re.sub(r"(CREATE (?:TABLE|INDEX)) \w+\.", r"\1 ", spaces).strip()


def _mariadb(connection: sa.Connection, schema: str | None) -> Facts:
    schema = schema or str(connection.exec_driver_sql("select database()").scalar_one())
    names = connection.scalars(
        sa.text("select table_name from information_schema.tables where table_schema = :schema"),
        {"schema": schema},
    )
    found: Facts = {}
    for name in names.all():
        sql = connection.exec_driver_sql(f"show create table `{schema}`.`{name}`").one()[1]
        lines = [line.strip(" ,") for line in re.sub(r" AUTO_INCREMENT=\d+", "", sql).splitlines()]
        # indexes stand in the order of their making, which SQLAlchemy 2.0 and 2.1 choose otherwise
        keys = sorted(line for line in lines if line.startswith("KEY"))
        found[name] = [*(line for line in lines if not line.startswith("KEY")), *keys]
    return found
