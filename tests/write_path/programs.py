"""Programs of one session or connection, as text; four ways to run them; a model of their outcome.

    p  publish a message                         (  begin a nested transaction (savepoint)
    s  insert a business row                     )  release the innermost one
    c  publish on the session's connection       !  roll the innermost one back
    C  commit                                    }  release the one around the innermost
    R  roll back                                 ^  roll back the one around the innermost
    X  close, without commit                        (} and ^ while the innermost is open)

Messages and rows are numbered as they stand in the text; the next token after C, R or X begins a
new transaction, and the end of the text is a close.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from tests.write_path.shop import INSERT, Order, Shop, say

Say = Callable[[Any, object], object]  # publishes a word on a session or connection

SESSION_TOKENS = "psc()!}^CRX"
CONNECTION_TOKENS = "ps()!CRX"


def numbered(program: str) -> Iterator[tuple[str, int]]:
    """Each token with the number of the message or row it makes."""
    messages = rows = 0
    for token in program:
        if token in "pc":
            yield token, messages
            messages += 1
        elif token == "s":
            yield token, rows
            rows += 1
        else:
            yield token, -1


def expected(program: str) -> tuple[list[str], list[str]]:
    """The words and notes that are committed in the end, by a stack of lists."""
    committed: list[tuple[str, int]] = []
    stack: list[list[tuple[str, int]]] = [[]]
    for token, number in numbered(program):
        if token in "psc":
            stack[-1].append(("note" if token == "s" else "word", number))
        elif token == "(":
            stack.append([])
        elif token == ")":
            released = stack.pop()
            stack[-1] += released
        elif token == "!":
            stack.pop()
        elif token == "}":
            inner, middle = stack.pop(), stack.pop()
            stack[-1] += middle + inner
        elif token == "^":
            del stack[-2:]
        else:
            if token == "C":
                committed += [thing for level in stack for thing in level]
            stack = [[]]
    words = [str(number) for kind, number in committed if kind == "word"]
    notes = [str(number) for kind, number in committed if kind == "note"]
    return words, notes


def possible(program: str) -> str:
    """The program without the tokens that make no sense where they stand."""
    depth = 0
    kept = ""
    for token in program:
        if (token in ")!" and depth < 1) or (token in "}^" and depth < 2):
            continue
        depth += {"(": 1, ")": -1, "!": -1, "}": -2, "^": -2}.get(token, 0)
        if token in "CRX":
            depth = 0
        kept += token
    return kept


def run_session(shop: Shop, program: str, say: Say = say) -> None:
    """On a Session."""
    session = Session(shop.engine)
    nested: list[Any] = []
    for token, number in numbered(program):
        if not session.in_transaction():
            session.begin()
            nested = []
        if token == "p":
            say(session, number)
        elif token == "c":
            say(session.connection(), number)
        elif token == "s":
            session.add(Order(note=str(number)))
            session.flush()
        elif token == "(":
            nested.append(session.begin_nested())
        elif token == ")":
            nested.pop().commit()
        elif token == "!":
            nested.pop().rollback()
        elif token in "}^":
            nested.pop()
            outer = nested.pop()
            outer.commit() if token == "}" else outer.rollback()
        else:
            {"C": session.commit, "R": session.rollback, "X": session.close}[token]()
    session.close()


def run_connection(shop: Shop, program: str, say: Say = say) -> None:
    """On a Connection."""
    connection = shop.engine.connect()
    nested: list[sa.NestedTransaction] = []
    for token, number in numbered(program):
        if connection.closed:
            connection = shop.engine.connect()
        if not connection.in_transaction():
            connection.begin()
            nested = []
        if token in "pc":
            say(connection, number)
        elif token == "s":
            connection.execute(INSERT, {"note": str(number)})
        elif token == "(":
            nested.append(connection.begin_nested())
        elif token == ")":
            nested.pop().commit()
        elif token == "!":
            nested.pop().rollback()
        else:
            {"C": connection.commit, "R": connection.rollback, "X": connection.close}[token]()
    connection.close()


async def run_async_session(engine: AsyncEngine, program: str, say: Say = say) -> None:
    """On an AsyncSession; publishing is a plain call, outside SQLAlchemy's greenlet."""
    session = AsyncSession(engine)
    nested: list[Any] = []
    for token, number in numbered(program):
        if not session.in_transaction():
            await session.begin()
            nested = []
        if token == "p":
            say(session, number)
        elif token == "c":
            say(await session.connection(), number)
        elif token == "s":
            session.add(Order(note=str(number)))
            await session.flush()
        elif token == "(":
            nested.append(await session.begin_nested())
        elif token == ")":
            await nested.pop().commit()
        elif token == "!":
            await nested.pop().rollback()
        elif token in "}^":
            nested.pop()
            outer = nested.pop()
            await (outer.commit() if token == "}" else outer.rollback())
        else:
            await {"C": session.commit, "R": session.rollback, "X": session.close}[token]()
    await session.close()


async def run_async_connection(engine: AsyncEngine, program: str, say: Say = say) -> None:
    """On an AsyncConnection."""
    connection: AsyncConnection = await engine.connect()
    nested: list[Any] = []
    for token, number in numbered(program):
        if connection.closed:
            connection = await engine.connect()
        if not connection.in_transaction():
            await connection.begin()
            nested = []
        if token in "pc":
            say(connection, number)
        elif token == "s":
            await connection.execute(INSERT, {"note": str(number)})
        elif token == "(":
            nested.append(await connection.begin_nested())
        elif token == ")":
            await nested.pop().commit()
        elif token == "!":
            await nested.pop().rollback()
        else:
            await {"C": connection.commit, "R": connection.rollback, "X": connection.close}[
                token
            ]()
    await connection.close()


class SyncRunner(Protocol):
    """run_session or run_connection."""

    __name__: str

    def __call__(self, shop: Shop, program: str) -> None: ...


AsyncRunner = Callable[[AsyncEngine, str], Awaitable[None]]
