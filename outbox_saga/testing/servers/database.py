"""A database server that gives each test a database of its own."""

from __future__ import annotations

import secrets
from abc import abstractmethod

from sqlalchemy import URL, make_url

from outbox_saga.testing.servers.server import Server


class DatabaseServer(Server):
    """A server whose `create_database` gives an empty database that nobody else uses."""

    @abstractmethod
    def execute(self, statement: str, patience: float = 5) -> None:
        """Run one statement as the server's owner, outside any transaction."""

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"create database {name}")
        return self.address(name)

    @abstractmethod
    def drop_database(self, url: str) -> None:
        """Delete a database made by `create_database`, whoever is still connected to it."""

    def address(self, database: str) -> str:
        """The URL of that database on this server."""
        return self.parsed_url.set(database=database).render_as_string(hide_password=False)

    @property
    def parsed_url(self) -> URL:
        """The server's own URL, in parts."""
        return make_url(self.url)
