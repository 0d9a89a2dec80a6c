"""A payment provider: another company, with a database of its own, that acts once for each key."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

LEDGER = Path(os.environ.get("PSP_LEDGER", "psp.db"))
LIMIT = 500_000  # cents that it lets anybody pay at once


def _open() -> sqlite3.Connection:
    connection = sqlite3.connect(LEDGER, timeout=30)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS movement (key TEXT PRIMARY KEY, customer TEXT, cents INTEGER)"
    )
    return connection


def pay(key: str, customer: str, cents: int) -> str | None:
    """The payment's number, the same for the same key; None: declined."""
    if cents > LIMIT:
        return None
    return _move(key, customer, cents)


def refund(key: str, customer: str, cents: int) -> str:
    """The refund's number, the same for the same key."""
    return _move(key, customer, -cents)


def balance(customer: str) -> int:
    """Cents that this customer has paid and not got back."""
    with closing(_open()) as connection, connection:
        total = "SELECT coalesce(sum(cents), 0) FROM movement WHERE customer = ?"
        (cents,) = connection.execute(total, (customer,)).fetchone()
        return int(cents)


def _move(key: str, customer: str, cents: int) -> str:
    with closing(_open()) as connection, connection:
        connection.execute(
            "INSERT OR IGNORE INTO movement VALUES (?, ?, ?)", (key, customer, cents)
        )
    return f"psp-{key[:8]}"
