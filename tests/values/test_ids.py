"""Ids: UUIDv7 that rise within a process, and keys that no release may ever change."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from uuid import RFC_4122, UUID

import pytest

from outbox_saga.ids import idempotency_key, new_id, saga_id


def test_an_id_is_a_uuid_version_7_of_this_moment() -> None:
    before = time.time_ns() // 1_000_000
    id_ = new_id()
    after = time.time_ns() // 1_000_000
    assert (id_.version, id_.variant) == (7, RFC_4122)
    # the clock may have been pushed ahead a little by ids made faster than its ticks
    assert before <= id_.int >> 80 <= after + 50


def test_an_id_is_a_uuid_as_the_constructor_makes_it() -> None:
    """It is made without, for speed; a later Python may keep its parts otherwise."""
    id_ = new_id()
    same = UUID(str(id_))
    assert (id_, hash(id_), repr(id_), id_.is_safe) == (same, hash(same), repr(same), same.is_safe)
    assert pickle.loads(pickle.dumps(id_)) == copy.copy(id_) == copy.deepcopy(id_) == same


def test_ids_rise_within_each_thread_and_none_comes_twice() -> None:
    made: list[list[UUID]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def make(mine: list[UUID]) -> None:
        start.wait()
        mine += [new_id() for _ in range(2000)]

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in made:
        assert mine == sorted(mine)
    assert len({id_ for mine in made for id_ in mine}) == 16_000
    assert new_id() > max(max(mine) for mine in made)


def test_a_clock_that_steps_back_makes_no_smaller_id(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    second = new_id()
    assert second > first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_makes_an_id_can_make_its_own_different_ones() -> None:
    from outbox_saga import ids

    reading, writing = os.pipe()
    with ids._lock:  # as another thread would hold it at the moment of the fork
        child = os.fork()
        if child == 0:
            made = b"".join(new_id().bytes for _ in range(100))
            os.write(writing, made)
            os._exit(0)
    os.close(writing)
    ours = {new_id() for _ in range(100)}
    raw = b""
    while part := os.read(reading, 65536):
        raw += part
    os.close(reading)
    assert os.waitpid(child, 0)[1] == 0
    theirs = {UUID(bytes=raw[i : i + 16]) for i in range(0, len(raw), 16)}
    assert len(theirs) == 100
    assert not ours & theirs


# Golden values. A release that changes one makes services charge customers twice.
def test_the_key_of_an_effect_is_the_one_it_has_always_been() -> None:
    instance = UUID("0199f3a0-7c00-7000-8000-000000000001")
    keys = [
        idempotency_key(instance, "charge", "action", 1),
        idempotency_key(instance, "charge", "action", 2),
        idempotency_key(instance, "charge", "compensation", 1),
        idempotency_key(instance, "überweisung", "action", 1),
    ]
    assert [str(key) for key in keys] == GOLDEN_EFFECTS
    assert len(set(keys)) == 4


def test_the_id_of_an_instance_is_the_one_it_has_always_been() -> None:
    ids = [
        saga_id("orders", "fulfil_order", "order:1"),
        saga_id("orders", "fulfil_order", "order:2"),
        saga_id("orders", "cancel_order", "order:1"),
        saga_id("billing", "fulfil_order", "order:1"),
    ]
    assert [str(id_) for id_ in ids] == GOLDEN_INSTANCES
    assert len(set(ids)) == 4


GOLDEN_EFFECTS = [
    "30fe4509-a6d8-50e8-bd68-a9f54f0fdb26",
    "0e510931-d515-5b4b-b742-970068c8938c",
    "18dfe616-f1cd-5224-842e-93adb902a998",
    "f9985e40-5eae-5580-a72a-886a867ac230",
]
GOLDEN_INSTANCES = [
    "4d3b5083-64dd-54ed-8acf-7539dd5244c5",
    "559c7f6e-623a-5513-b267-3e67b276bb2a",
    "e74f28b3-e26e-52f7-bf0c-8976f9aafb2e",
    "70c2d1c0-096c-5f0c-8dec-b28acd5f90a4",
]
