"""The provider's books: a file of its own, in which every key stands once with its answer."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCHEMA = """
create table if not exists arrival (key text primary key, count integer not null);
create table if not exists answer (
    key text primary key, request blob not null, status integer not null, body text not null);
create table if not exists charge (
    id text primary key, order_id integer not null, customer text not null,
    amount_cents integer not null);
create table if not exists refund (
    id text primary key, charge text not null unique references charge (id),
    amount_cents integer not null);
create table if not exists mail (
    id text primary key, kind text not null, recipient text not null, about text not null);
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider says."""

    status: int
    body: dict[str, Any]


class Ledger:
    """Durable: what was answered is on the disk before the answer goes out.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.executescript("pragma journal_mode=wal; pragma foreign_keys=on;")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def arrived(self, key: str) -> int:
        """How often a request of this key has arrived, this time included."""
        with self._lock:
            return int(
                self._connection.execute(
                    "insert into arrival values (?, 1) "
                    "on conflict (key) do update set count = count + 1 returning count",
                    (key,),
                ).fetchone()[0]
            )

    def once(
        self, key: str, path: str, request: Mapping[str, Any], act: Callable[[], Answer]
    ) -> Answer:
        """The answer to this request: `act` is called the first time, later it is repeated.

        A key that comes with another request is a mistake of the caller's: 409, nothing is done.
        """
        canonical = json.dumps([path, request], sort_keys=True).encode()
        digest = hashlib.sha256(canonical).digest()
        with self._lock:
            self._connection.execute("begin immediate")
            try:
                answer = self._seen(key, digest) or self._first(key, digest, act)
            except BaseException:
                self._connection.execute("rollback")
                raise
            self._connection.execute("commit")
            return answer

    def _seen(self, key: str, digest: bytes) -> Answer | None:
        row = self._connection.execute(
            "select request, status, body from answer where key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        if row[0] != digest:
            return Answer(409, {"error": "this key came with another request before"})
        return Answer(row[1], json.loads(row[2]))

    def _first(self, key: str, digest: bytes, act: Callable[[], Answer]) -> Answer:
        answer = act()
        self._connection.execute(
            "insert into answer values (?, ?, ?, ?)",
            (key, digest, answer.status, json.dumps(answer.body)),
        )
        return answer

    # --- within `once` ------------------------------------------------------------------------

    def charge(self, key: str, order_id: int, customer: str, amount_cents: int) -> Answer:
        """Money is taken."""
        id_ = f"charge-{key}"
        self._connection.execute(
            "insert into charge values (?, ?, ?, ?)", (id_, order_id, customer, amount_cents)
        )
        return Answer(201, {"id": id_})

    def refund(self, key: str, charge: str) -> Answer:
        """The whole charge is given back, once."""
        found = self._connection.execute(
            "select amount_cents from charge where id = ?", (charge,)
        ).fetchone()
        if found is None:
            return Answer(422, {"error": "there is no such charge"})
        given_back = self._connection.execute(
            "select 1 from refund where charge = ?", (charge,)
        ).fetchone()
        if given_back is not None:
            return Answer(422, {"error": "the charge was refunded already"})
        id_ = f"refund-{key}"
        self._connection.execute("insert into refund values (?, ?, ?)", (id_, charge, found[0]))
        return Answer(201, {"id": id_})

    def mail(self, key: str, kind: str, recipient: str, about: str) -> Answer:
        """A mail goes out."""
        id_ = f"mail-{key}"
        self._connection.execute(
            "insert into mail values (?, ?, ?, ?)", (id_, kind, recipient, about)
        )
        return Answer(201, {"id": id_})

    def everything(self) -> dict[str, list[dict[str, Any]]]:
        """All charges, refunds and mails, in the order in which they were made."""
        with self._lock:
            return {
                "charges": self._rows(
                    "select id, order_id, customer, amount_cents from charge order by rowid"
                ),
                "refunds": self._rows(
                    "select refund.id, charge, order_id, refund.amount_cents from refund "
                    "join charge on charge.id = refund.charge order by refund.rowid"
                ),
                "mails": self._rows("select id, kind, recipient, about from mail order by rowid"),
            }

    def _rows(self, statement: str) -> list[dict[str, Any]]:
        found = self._connection.execute(statement)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]
