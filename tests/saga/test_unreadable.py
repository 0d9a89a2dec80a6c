"""Rows that this release cannot read, for a newer one wrote them, or nobody should have."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.errors import SagaUnreadable
from outbox_saga.ids import new_id
from outbox_saga.instances import SagaState, StepState, dump_data, dump_progress, load_state
from outbox_saga.queries import unreadable as unreadable_rows
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.unreadable import AGAIN, AT_MOST, Unreadable
from outbox_saga.saga import parking
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.saga.parking import OVERDUE
from outbox_saga_migrations import upgrade
from tests.saga.test_versions import Post, parcels

NEWER = {
    "a field of a step": {"steps": {"weigh": {"phase": "waiting", "weight": 7}}},
    "a phase": {"steps": {"weigh": {"phase": "frozen"}}},
    "something of the saga": {"steps": {}, "season": "winter"},
}
BROKEN = {
    "nothing": "",
    "null": "null",
    "a number": "7",
    "no steps": "{}",
    "a list of steps": '{"steps": []}',
    "half of it": '{"steps": {"weigh": {}',
    "a step that is a number": '{"steps": {"a": 7}}',
    "too deep": "[" * 100_000,
    "a moment without a zone": '{"steps": {"a": {"phase": "waiting", "due": "2026-01-01T00:00"}}}',
    "stuck somewhere": '{"steps": {"a": {"phase": "stuck", "stuck": "sideways"}}}',
    "a status before that is none": '{"steps": {}, "before": ["paused", null]}',
}
NO_DATA = {
    "null": "null",
    "a list": "[]",
    "half of it": '{"card": "4111',
    "not a number": '{"a": NaN}',
    "out of range": '{"a": 1e999}',
    "half a character": '{"a": "\\ud800"}',
}


def state_of(progress: str, *, status: Any = "running", data: str = "{}") -> SagaState:
    return load_state(status, data, progress, None)


@pytest.mark.parametrize("kept", NEWER.values(), ids=NEWER)
def test_what_a_newer_release_wrote_is_named_and_not_dropped(kept: dict[str, Any]) -> None:
    with pytest.raises(SagaUnreadable, match=r"newer release wrote .*(weight|frozen|season)"):
        state_of(json.dumps(kept))


def test_a_state_of_a_newer_release_is_named() -> None:
    with pytest.raises(SagaUnreadable, match=r"newer release wrote .*paused"):
        state_of('{"steps": {}}', status="paused")


@pytest.mark.parametrize("progress", BROKEN.values(), ids=BROKEN)
def test_what_nobody_writes_is_refused_as_that(progress: str) -> None:
    with pytest.raises(SagaUnreadable, match="not what any release writes"):
        state_of(progress)


@pytest.mark.parametrize("data", NO_DATA.values(), ids=NO_DATA)
def test_data_that_could_not_be_written_back_is_refused_without_showing_it(data: str) -> None:
    with pytest.raises(SagaUnreadable, match="not what any release writes") as refused:
        state_of('{"steps": {}}', data=data)
    assert "4111" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_characters_of_any_kind_are_read() -> None:
    assert state_of('{"steps": {}}', data='{"a": "\\ud83d\\ude00 \\u00e9"}').data == {"a": "😀 é"}


def test_what_this_release_writes_is_read() -> None:
    state = SagaState("stuck", {"a": 1}, {"weigh": StepState("stuck", attempts=2)}, "why",
                      ("running", None), "parked")  # fmt: skip
    assert load_state(state.status, dump_data(state.data), dump_progress(state), "why") == state


def test_one_is_left_out_for_a_while_and_looked_at_again(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    unreadable, id_ = Unreadable(lambda: now), new_id()
    for _ in range(2):
        unreadable.note(id_, "saga 7 cannot be read: so it is")
    assert list(unreadable.ids) == [id_]
    assert caplog.text.count("saga 7 cannot be read: so it is; it is looked at again") == 1
    now = AGAIN
    assert list(unreadable.ids) == []


def test_neither_the_list_of_those_left_out_nor_the_log_grows_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unreadable = Unreadable(lambda: 1.0)
    for _ in range(AT_MOST + 50):
        unreadable.note(new_id(), "it cannot be read")
    assert len(unreadable.ids) == AT_MOST
    assert len(caplog.records) == AT_MOST + 1
    assert "more than 1000 sagas cannot be read" in caplog.messages[-1]


# --- on real databases ---------------------------------------------------------------------------


@pytest.fixture
async def post(database_url: str) -> AsyncIterator[Post]:
    post = Post(database_url)
    with post.release().database.begin() as connection:
        upgrade(connection)
    yield post
    await post.close()


def write(post: Post, id_: UUID, **values: Any) -> None:
    database = post.release().database
    saga = database.tables.saga
    with database.begin() as connection:
        connection.execute(sa.update(saga).where(saga.c.id == id_).values(**values))


def row_of(post: Post, id_: UUID) -> Any:
    database = post.release().database
    saga = database.tables.saga
    with database.begin() as connection:
        return connection.execute(sa.select(saga).where(saga.c.id == id_)).one()


@pytest.mark.anyio
async def test_instances_that_cannot_be_read_keep_nobody_from_the_others(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    newer, broken, fine = [await post.start(parcels()) for _ in range(3)]
    write(post, newer, progress=json.dumps(NEWER["a field of a step"]))
    write(post, broken, progress="")
    before = [row_of(post, id_) for id_ in (newer, broken)]

    service = post.release(parcels())
    orchestrator = service.orchestrator(concurrency=1)
    try:
        assert await orchestrator.run_once() == 1  # though two are before it, and one is taken
        assert await orchestrator.run_once() == 0
    finally:
        orchestrator.close()

    assert (await post.seen(fine))[0].status == "completed"
    assert [row_of(post, id_) for id_ in (newer, broken)] == before
    assert f"saga {newer} cannot be read: a newer release wrote" in caplog.text
    assert f"saga {broken} cannot be read: its data or progress" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("at_once", [False, True], ids=["one after another", "of one moment"])
async def test_more_of_them_than_can_be_left_out_keep_nobody_from_the_others_either(
    post: Post, monkeypatch: pytest.MonkeyPatch, places: int, at_once: bool
) -> None:
    monkeypatch.setattr(unreadable_rows, "AT_MOST", 1)
    *broken, fine = [await post.start(parcels()) for _ in range(6)]
    when = {"due_at": row_of(post, fine).due_at} if at_once else {}
    for id_ in broken:
        write(post, id_, progress="", **when)
    orchestrator = post.release(parcels()).orchestrator(concurrency=places)
    try:
        assert await orchestrator.run_once() == 1
    finally:
        orchestrator.close()
    assert (await post.seen(fine))[0].status == "completed"


@pytest.mark.anyio
async def test_one_that_is_readable_again_goes_on(post: Post) -> None:
    id_ = await post.start(parcels())
    written = row_of(post, id_).progress
    write(post, id_, progress="")
    assert await post.carried_on(post.release(parcels())) == 0
    write(post, id_, progress=written)
    assert await post.carried_on(post.release(parcels())) == 1
    assert (await post.seen(id_))[0].status == "completed"


@pytest.mark.anyio
async def test_one_that_is_stranded_and_cannot_be_read_keeps_no_other_from_being_parked(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "AT_ONCE", 2)
    *broken, stranded = [await post.start(parcels()) for _ in range(4)]
    for id_ in broken:
        write(post, id_, progress="")
    assert await post.carried_on(post.release(clock=Clock(OVERDUE + 1))) == 0
    assert (await post.seen(stranded))[0].parked is not None
    assert [row_of(post, id_).progress for id_ in broken] == [""] * 3


@pytest.mark.anyio
async def test_operators_see_it_in_the_list_and_are_told_why_nothing_can_be_done(
    post: Post,
) -> None:
    broken, fine = [await post.start(parcels()) for _ in range(2)]
    write(post, broken, progress="")
    operations = SagaOperations(post.release(parcels()).database, [parcels()])

    listed = {each.id: each.state.parked for each in await operations.list()}
    assert listed[fine] is None
    assert "cannot be read" in str(listed[broken])
    with pytest.raises(SagaUnreadable, match=f"saga {broken} cannot be read"):
        await operations.show(broken)
