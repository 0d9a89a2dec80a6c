"""The shop's tables, and triggers that see every change of an instance and of its history."""

from __future__ import annotations

import sqlalchemy as sa

from outbox_saga.tables import tables_in

OURS = tables_in(None)
metadata = sa.MetaData()

# One row for each message, written by the transaction that publishes it: what was committed to be
# sent.
intent = sa.Table(
    "crash_intent",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("message_id", sa.String(36), nullable=False),
    sa.Column("key", sa.String(100)),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
# What local steps did. No unique key on purpose: an effect that happens twice must show.
effect = sa.Table(
    "crash_effect",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("saga_id", sa.String(36), nullable=False),
    sa.Column("step", sa.String(50), nullable=False),
    sa.Column("direction", sa.String(10), nullable=False),
)
handled = sa.Table(
    "crash_handled",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("consumer", sa.String(50), nullable=False),
    sa.Column("message_id", sa.String(36), nullable=False),
)
order = sa.Table(
    "crash_order",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("saga_id", sa.String(36), nullable=False),
)
account = sa.Table(
    "crash_account",
    metadata,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("cents", sa.Integer, nullable=False),
)
audit = sa.Table(
    "crash_audit",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("saga_id", sa.String(36), nullable=False),
    sa.Column("old_revision", sa.Integer, nullable=False),
    sa.Column("new_revision", sa.Integer, nullable=False),
    sa.Column("old_state", sa.String(20), nullable=False),
    sa.Column("new_state", sa.String(20), nullable=False),
    sa.Column("changed", sa.Boolean, nullable=False),
)
# Every row that entered the outbox, as a trigger saw it: how often a message entered, and what of
# its bytes nobody has told us.
entry = sa.Table(
    "crash_entry",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("message_id", sa.String(36), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

BALANCES = {"buyer": 1_000_00, "shop": 0, "stock": 100_00, "reserved": 0}

_AUDIT = """
  INSERT INTO crash_audit (saga_id, old_revision, new_revision, old_state, new_state, changed)
  VALUES ({id}, OLD.revision, NEW.revision, {old}, {new},
          OLD.state <> NEW.state OR OLD.progress <> NEW.progress OR OLD.data <> NEW.data)"""

_ENTRY = "INSERT INTO crash_entry (message_id, body) VALUES ({id}, NEW.body)"
_TRIGGERS = {  # name: when, of which table, what it does
    "crash_audit": ("UPDATE", OURS.saga.name, _AUDIT),
    "crash_entered": ("INSERT", OURS.outbox.name, _ENTRY),
}


def create(connection: sa.Connection) -> None:
    """The shop's tables and the triggers, beside ours, which are there already."""
    metadata.create_all(connection)
    connection.execute(
        sa.insert(account), [{"name": name, "cents": cents} for name, cents in BALANCES.items()]
    )
    kind = connection.dialect.name
    names = {"id": "NEW.id", "old": "OLD.state", "new": "NEW.state"}
    if kind == "postgresql":
        names["id"] = "NEW.id::text"
    for name, (event, table, statement) in _TRIGGERS.items():
        body = statement.format(**names)
        if kind == "postgresql":
            connection.exec_driver_sql(
                f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN {body}; RETURN NEW; END $$"
            )
            body = f"EXECUTE FUNCTION {name}()"
        elif kind == "sqlite":
            body = f"BEGIN {body}; END"
        connection.exec_driver_sql(
            f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW {body}"
        )


def empty(connection: sa.Connection) -> None:
    """As after `create`: nothing of an earlier run is left."""
    kept = {OURS.partition_lease, OURS.key_lock}
    for table in (*OURS.metadata.tables.values(), *metadata.tables.values()):
        if table not in kept and table is not account:
            connection.execute(sa.delete(table))
    lease = OURS.partition_lease
    connection.execute(sa.update(lease).values(owner=None, until=None, epoch=0, revisit=None))
    for name, cents in BALANCES.items():
        connection.execute(sa.update(account).where(account.c.name == name).values(cents=cents))


def move(source: str, target: str, cents: int) -> list[sa.Update]:
    """The statements that move money (or goods) from one account to another."""
    return [
        sa.update(account).where(account.c.name == source).values(cents=account.c.cents - cents),
        sa.update(account).where(account.c.name == target).values(cents=account.c.cents + cents),
    ]
