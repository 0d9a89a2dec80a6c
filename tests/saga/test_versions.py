"""Definitions that change under running instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

from outbox_saga import Retry, Saga, Service, nothing_to_undo
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.parking import OVERDUE
from outbox_saga.saga.snapshot import compare, take_snapshot
from outbox_saga_migrations import upgrade
from outbox_saga_relay import saga_check
from outbox_saga_relay.cli import main

LATER = Clock(OVERDUE + 1)


class Parcel(BaseModel):
    number: int
    weighed: bool = False
    sent: bool = False


class Bigger(Parcel):
    insured: bool = False


async def weigh(step: Any) -> dict[str, bool]:
    return {"weighed": True}


async def send(step: Any) -> dict[str, bool]:
    return {"sent": True}


async def fails(step: Any) -> None:
    raise OSError


def parcels(
    *steps: str, version: int = 1, data: type[Parcel] = Parcel, pause: float = 0.0
) -> Saga[Any]:
    saga: Saga[Any] = Saga("parcels", data=data, version=version)
    actions: dict[str, Any] = {"weigh": weigh, "send": send, "label": weigh}
    for name in steps or ("weigh", "send"):
        if pause and name == "send":
            saga.step(
                name,
                fails,
                compensation=nothing_to_undo,
                retry=Retry(max_attempts=3, initial=pause, max_delay=pause),
            )
        else:
            saga.step(name, actions[name], compensation=nothing_to_undo)
    return saga


class Post:
    """One database, and the releases that use it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open: list[Service] = []

    def release(self, *sagas: Saga[Any], clock: Clock | None = None) -> Service:
        service = Service(
            "post", database=self._url, sagas=sagas, clock=clock or Clock(), poll=0.02
        )
        self._open.append(service)
        return service

    async def start(self, saga: Saga[Any]) -> UUID:
        service = self.release(saga)
        async with service.unit_of_work() as uow:
            return saga.start(uow, {"number": 7})

    async def carried_on(self, service: Service) -> int:
        orchestrator = service.orchestrator()
        try:
            return await orchestrator.run_once()
        finally:
            orchestrator.close()

    async def seen(self, id_: UUID) -> tuple[Any, list[str]]:
        from outbox_saga.saga.operating import SagaOperations

        instance, history = await SagaOperations(self._open[0].database).show(id_)
        return instance.state, [each.entry.transition for each in history]

    async def close(self) -> None:
        for service in self._open:
            await service.close()


@pytest.fixture
async def post(database_url: str) -> Any:
    post = Post(database_url)
    with post.release().database.begin() as connection:
        upgrade(connection)
    yield post
    await post.close()


async def test_an_instance_whose_version_is_gone_is_parked_with_the_reason_and_only_once(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    id_ = await post.start(parcels())
    new = post.release(parcels("send", version=2), clock=LATER)

    assert await post.carried_on(new) == 0
    assert await post.carried_on(post.release(parcels("send", version=2), clock=Clock(99))) == 0

    state, history = await post.seen(id_)
    assert history == ["STARTED", "PARKED"]
    assert state.status == "running"
    assert state.parked == (
        "no version 1 of parcels is registered here (only 2): register it beside the others until "
        "its instances have ended"
    )
    assert f"saga {id_} is parked: no version 1" in caplog.text


async def test_an_instance_of_another_shape_is_parked_and_the_reason_says_what_to_do(
    post: Post,
) -> None:
    id_ = await post.start(parcels())

    await post.carried_on(post.release(parcels("label", "send"), clock=LATER))

    state, _ = await post.seen(id_)
    assert state.parked is not None
    assert "another shape" in state.parked
    assert "give the changed definition a new version" in state.parked


async def test_a_service_that_has_no_saga_any_more_parks_what_it_had_started(post: Post) -> None:
    id_ = await post.start(parcels())

    await post.carried_on(post.release(clock=LATER))

    state, _ = await post.seen(id_)
    assert state.parked is not None
    assert "none of that name" in state.parked


async def test_a_new_release_leaves_an_instance_to_the_old_one_for_a_while(post: Post) -> None:
    id_ = await post.start(parcels())
    before = await post.seen(id_)

    assert await post.carried_on(post.release(parcels("send", version=2))) == 0

    assert await post.seen(id_) == before
    assert await post.carried_on(post.release(parcels(), parcels("send", version=2))) == 1
    assert (await post.seen(id_))[0].status == "completed"


async def test_a_parked_instance_goes_on_at_once_when_its_definition_is_back(post: Post) -> None:
    id_ = await post.start(parcels())
    await post.carried_on(post.release(parcels("send", version=2), clock=LATER))

    both = post.release(parcels("send", version=2), parcels(), clock=LATER)
    assert await post.carried_on(both) == 1

    state, history = await post.seen(id_)
    assert (state.status, state.parked) == ("completed", None)
    assert history == [
        "STARTED", "PARKED", "UNPARKED", "STEP_COMPLETED", "STEP_COMPLETED", "COMPLETED",
    ]  # fmt: skip


async def test_one_that_waits_for_its_next_attempt_is_not_parked_before_that(post: Post) -> None:
    old = parcels(pause=600.0)
    id_ = await post.start(old)
    await post.carried_on(post.release(old))

    await post.carried_on(post.release(parcels("send", version=2), clock=LATER))

    assert (await post.seen(id_))[0].parked is None


# --- the snapshot --------------------------------------------------------------------------------


def found(before: list[Saga[Any]], now: list[Saga[Any]], alive: Any = None) -> dict[str, str]:
    kept = json.loads(json.dumps(take_snapshot(before)))
    return {f.kind: f.text for f in compare(kept, take_snapshot(now), alive)}


def test_what_was_not_changed_is_not_spoken_of() -> None:
    assert found([parcels()], [parcels()]) == {}


def test_a_step_removed_renamed_or_moved_without_a_new_version_is_refused() -> None:
    before = [parcels("weigh", "label", "send")]
    mend = "give the new definition version=2, and keep this one as it was"

    assert found(before, [parcels("weigh", "send")]) == {
        "changed": "step label was removed; step send is another one (its kind, what it waits "
        f"for, pivot or compensation): {mend}"
    }
    renamed = found([parcels("weigh")], [parcels("label")])["changed"]
    assert renamed == f"step label was added; step weigh was removed: {mend}"
    moved = found(before, [parcels("label", "weigh", "send")])["changed"]
    assert "step weigh is another one" in moved
    assert found([parcels()], [parcels(data=Bigger)])["changed"].startswith(
        "the schema of its data was changed"
    )


def test_a_version_that_was_taken_away_is_refused_until_no_instance_needs_it() -> None:
    before, now = [parcels(), parcels("send", version=2)], [parcels("send", version=2)]
    shape = parcels().shape

    assert "instances may need it" in found(before, now)["missing"]
    assert "3 instances need it" in found(before, now, {("parcels", 1, shape): 3})["missing"]
    assert set(found(before, now, {})) == {"gone"}


def test_instances_alive_refuse_what_the_snapshot_does_not_know_of() -> None:
    alive = {("parcels", 1, "a shape of before"): 2, ("letters", 4, "x"): 1}

    findings = compare(take_snapshot([parcels()]), take_snapshot([parcels()]), alive)

    assert [(f.saga, f.version, f.kind) for f in findings] == [
        ("letters", 4, "missing"),
        ("parcels", 1, "changed"),
    ]


# --- outbox-saga saga check ----------------------------------------------------------------------


@pytest.fixture
def check(post: Post, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*sagas: Saga[Any], options: tuple[str, ...] = ()) -> Result:
        monkeypatch.setattr(saga_check, "load_service", lambda _: post.release(*sagas))
        return CliRunner().invoke(main, ["saga", "check", "post:service", *options])

    return run


async def test_a_snapshot_is_made_kept_and_refuses_a_changed_definition(check: Any) -> None:
    assert check(parcels()).exit_code == 1  # there is no snapshot yet
    assert check(parcels(), options=("--write",)).exit_code == 0
    assert check(parcels()).output == ""

    changed = check(parcels("send"), options=("--write",))
    assert changed.exit_code == 1
    assert changed.output.startswith("parcels\t1\tchanged\t")
    assert check(parcels()).exit_code == 0  # nothing was written

    both = check(parcels(), parcels("send", version=2))
    assert (both.exit_code, both.output) == (
        1,
        "parcels\t2\tnew\tnot in the snapshot: take it in with --write\n",
    )


async def test_the_database_says_whether_a_version_is_still_needed(post: Post, check: Any) -> None:
    import asyncio

    def asked(*sagas: Saga[Any], options: tuple[str, ...]) -> Any:
        return asyncio.to_thread(lambda: check(*sagas, options=options))

    new = parcels("send", version=2)
    await asked(parcels(), new, options=("--write",))
    await post.start(parcels())

    refused = await asked(new, options=("--with-database", "--json"))
    assert refused.exit_code == 1
    (told,) = json.loads(refused.output)["findings"]
    assert (told["kind"], told["version"], told["refused"]) == ("missing", 1, True)

    await post.carried_on(post.release(parcels()))
    assert (await asked(new, options=("--with-database", "--write"))).exit_code == 0
    assert (await asked(new, options=())).exit_code == 0


async def test_a_file_that_is_no_snapshot_is_said_to_be_none(check: Any, tmp_path: Path) -> None:
    (tmp_path / "sagas.json").write_text("[]")

    told = check(parcels())

    assert told.exit_code == 1
    assert "sagas.json is no snapshot of sagas; make one with --write" in told.output
