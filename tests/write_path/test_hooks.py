"""Publishing from users' own hooks: what runs before the COMMIT is in it, later is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.errors import MessagesLeftOut, NoTransaction
from outbox_saga.pending import writing
from tests.write_path.shop import INSERT, Order, Shop, order, say

BEFORE = ("before_flush", "after_flush", "after_flush_postexec", "before_commit")
AFTER = ("after_commit", "after_rollback", "after_soft_rollback")
# our own listeners stand on the class: `class, first` runs before them, the others after
LEVELS = ("instance", "sessionmaker", "class, first", "class, last")


class Once:
    """A hook that publishes the first time it is called."""

    def __init__(self) -> None:
        self.called = False
        self.error: Exception | None = None

    def __call__(self, session: Session, *_: Any) -> None:
        if not self.called:
            self.called = True
            try:
                say(session, "hook")
            except Exception as error:
                self.error = error
                raise


@pytest.fixture
def listen() -> Iterator[Callable[..., Once]]:
    """Registers a hook on what it is given, until the test ends."""
    made: list[tuple[Any, str, Any]] = []

    def add(target: Any, name: str, *, first: bool = False) -> Once:
        hook = Once()

        # SQLAlchemy looks at the signature: each event has its own number of arguments
        count = {"before_flush": 3, "after_flush": 2, "after_flush_postexec": 2}.get(name, 1)
        count = 2 if name == "after_soft_rollback" else count
        shaped: Any = {
            1: lambda session: hook(session),  # noqa: PLW0108  # an object has no signature to look at
            2: lambda session, _: hook(session),
            3: lambda session, _, __: hook(session),
        }[count]
        event.listen(target, name, shaped, insert=first)
        made.append((target, name, shaped))
        return hook

    yield add
    for target, name, shaped in made:
        event.remove(target, name, shaped)


def target_of(level: str, maker: Any, session: Session) -> Any:
    return {"instance": session, "sessionmaker": maker}.get(level, Session)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", BEFORE)
def test_what_a_hook_publishes_before_the_commit_leaves_with_it(
    shop: Shop, listen: Callable[..., Once], name: str, level: str
) -> None:
    maker = sessionmaker(shop.engine)
    with maker() as session:
        listen(target_of(level, maker, session), name, first="first" in level)
        order(session, "row")
        say(session, "said")
        session.commit()
    assert sorted(shop.words()) == ["hook", "said"]
    assert shop.notes() == ["row"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", BEFORE)
def test_a_hook_may_publish_the_only_message(
    shop: Shop, listen: Callable[..., Once], name: str, level: str
) -> None:
    maker = sessionmaker(shop.engine)
    with maker() as session:
        listen(target_of(level, maker, session), name, first="first" in level)
        order(session, "row")
        session.commit()
    assert (shop.words(), shop.notes()) == (["hook"], ["row"])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", BEFORE)
async def test_a_hook_of_an_async_session_may_publish_too(
    shop: Shop, async_engine: AsyncEngine, listen: Callable[..., Once], name: str, level: str
) -> None:
    class Made(Session):
        """What the sessionmaker makes, so that it can have hooks of its own."""

    maker = async_sessionmaker(async_engine, sync_session_class=Made)
    async with maker() as session:
        target = {"instance": session.sync_session, "sessionmaker": Made}.get(level, Session)
        listen(target, name, first="first" in level)
        session.add(Order(note="row"))
        say(session, "said")
        await session.commit()
    assert sorted(shop.words()) == ["hook", "said"]
    assert shop.notes() == ["row"]


@pytest.mark.parametrize("level", ["instance", "class, first", "class, last"])
async def test_a_before_commit_hook_publishes_on_an_async_session_without_any_sql(
    shop: Shop, async_engine: AsyncEngine, listen: Callable[..., Once], level: str
) -> None:
    async with AsyncSession(async_engine) as session:
        listen(
            session.sync_session if level == "instance" else Session,
            "before_commit",
            first="first" in level,
        )
        await session.begin()
        await session.commit()
    assert shop.words() == ["hook"]


@pytest.mark.parametrize("level", ["instance", "class, first", "class, last"])
def test_a_hook_on_a_savepoints_release_publishes_into_that_savepoint(
    shop: Shop, listen: Callable[..., Once], level: str
) -> None:
    with Session(shop.engine) as session:
        listen(
            session if level == "instance" else Session, "before_commit", first="first" in level
        )
        order(session, "kept")
        say(session, "outer")
        with session.begin_nested() as middle:
            with session.begin_nested():
                order(session, "undone")
            middle.rollback()
        session.commit()
    assert (shop.words(), shop.notes()) == (["outer"], ["kept"])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("with_message", [False, True], ids=["alone", "after another message"])
def test_publishing_in_after_commit_is_refused(
    shop: Shop, listen: Callable[..., Once], level: str, *, with_message: bool
) -> None:
    maker = sessionmaker(shop.engine)
    with maker() as session:
        hook = listen(target_of(level, maker, session), "after_commit", first="first" in level)
        order(session, "row")
        if with_message:
            say(session, "said")
        with pytest.raises((NoTransaction, MessagesLeftOut)):
            session.commit()
    assert isinstance(hook.error, NoTransaction | MessagesLeftOut)
    assert (shop.words(), shop.notes()) == (["said"] if with_message else [], ["row"])


async def test_publishing_in_after_commit_of_an_async_session_is_refused(
    shop: Shop, async_engine: AsyncEngine, listen: Callable[..., Once]
) -> None:
    async with AsyncSession(async_engine) as session:
        listen(session.sync_session, "after_commit")
        session.add(Order(note="row"))
        say(session, "said")
        with pytest.raises((NoTransaction, MessagesLeftOut)):
            await session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


@pytest.mark.parametrize("name", ["after_rollback", "after_soft_rollback"])
def test_publishing_in_a_hook_after_the_rollback_is_refused(
    shop: Shop, listen: Callable[..., Once], name: str
) -> None:
    with Session(shop.engine) as session:
        hook = listen(session, name)
        order(session, "row")
        session.flush()
        with pytest.raises(NoTransaction):
            session.rollback()
        assert isinstance(hook.error, NoTransaction)
    assert (shop.words(), shop.notes()) == ([], [])


def test_publishing_in_a_hook_after_a_savepoints_rollback_belongs_to_what_is_around_it(
    shop: Shop, listen: Callable[..., Once]
) -> None:
    with Session(shop.engine) as session:
        order(session, "kept")
        nested = session.begin_nested()
        listen(session, "after_soft_rollback")
        order(session, "undone")
        say(session, "inside")
        nested.rollback()
        session.commit()
    assert (shop.words(), shop.notes()) == (["hook"], ["kept"])


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_what_is_published_while_the_commit_is_under_way_aborts_it(shop: Shop, kind: str) -> None:
    late: list[Any] = []

    def publish(connection: sa.Connection) -> None:
        if late:
            say(late.pop(), "late")

    event.listen(shop.engine, "commit", publish)
    if kind == "session":
        with Session(shop.engine) as session:
            order(session, "row")
            say(session, "said")
            late.append(session)
            with pytest.raises(MessagesLeftOut, match="publish before"):
                session.commit()
            session.rollback()
    else:
        with shop.engine.connect() as connection:
            connection.execute(INSERT, {"note": "row"})
            late.append(connection)
            with pytest.raises(MessagesLeftOut, match="publish before"):
                connection.commit()
    event.remove(shop.engine, "commit", publish)
    with Session(shop.engine) as session, session.begin():
        order(session, "next")  # on the same connection
    assert (shop.words(), shop.notes()) == ([], ["next"])


def test_what_was_published_too_late_does_not_leave_with_the_next_transaction(shop: Shop) -> None:
    with shop.engine.connect() as connection:
        late: list[sa.Connection] = [connection]

        def publish(_: sa.Connection) -> None:
            if late:
                with pytest.raises(MessagesLeftOut):
                    say(late.pop(), "late")

        event.listen(shop.engine, "commit", publish)
        connection.execute(INSERT, {"note": "first"})
        connection.commit()
        connection.execute(INSERT, {"note": "second"})
        say(connection, "second")
        connection.commit()
    event.remove(shop.engine, "commit", publish)
    assert (shop.words(), shop.notes()) == (["second"], ["first", "second"])


def test_a_commit_that_left_messages_out_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_ready", lambda connection: None)  # a defect of ours
    with Session(shop.engine) as session:
        order(session, "row")
        say(session, "said")
        with pytest.raises(MessagesLeftOut, match="1 message"):
            session.commit()
    monkeypatch.undo()
    with Session(shop.engine) as session, session.begin():
        say(session, "next")
    assert shop.words() == ["next"]
