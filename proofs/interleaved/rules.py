"""The rules that the plays of proof 2.7 are about, each as what takes it out."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any
from unittest.mock import patch

from outbox_saga.queries import exchange, failures, failures_at_once
from outbox_saga.queries import outbox as writing
from outbox_saga.queries.relay import Wanted
from outbox_saga_relay import store as stores
from outbox_saga_relay.mark import Mark
from proofs.interleaved.stage import RelayActor


class PassesAtOnce(Mark):
    """The mark passes what was read, whoever may still show a row below it."""

    def read(
        self,
        oldest: int | None,
        highest: int | None,
        *,
        full: bool,
        in_progress: Collection[int] = (),
    ) -> None:
        """As `Mark.read`, and then to the end of what was read."""
        super().read(oldest, highest, full=full, in_progress=in_progress)
        if highest is not None:
            self.position = max(self.position, highest)


def mark_passes_at_once() -> Any:
    """A mark that waits for nobody."""
    return patch.object(stores, "Mark", PassesAtOnce)


def mark_goes_by_xmax() -> Any:
    """A mark that goes by the latest transaction that has ended."""
    latest = (
        "SELECT x || ':' || x || ':' "
        "FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS x) AS latest"
    )
    return patch.object(exchange, "_SNAPSHOT", latest)


def no_key_lock() -> Any:
    """Writers of one key do not wait for each other."""
    return patch.object(writing, "lock_numbers", lambda _: [])


def _wanted_without(**changed: Any) -> Any:
    def make(*args: Any, **options: Any) -> Wanted:
        partitions, limit, *_ = args
        given = {k: v for k, v in options.items() if k not in changed}
        owner = changed.get("owner", args[2] if len(args) > 2 else None)
        more = {k: v for k, v in changed.items() if k != "owner"}
        return Wanted(partitions, limit, owner, **given, **more)

    return patch.object(stores, "Wanted", make)


def page_without_lease() -> Any:
    """A page is read whoever owns the partitions by now."""
    return _wanted_without(owner=None, none_if_put_back=False)


def page_despite_what_is_back() -> Any:
    """A page does not ask whether somebody has put a row back."""
    return _wanted_without(none_if_put_back=False)


def due_by_the_clock() -> Any:
    """A key's time comes by the clock of the page's own statement."""
    return _wanted_without(due=None)


@contextlib.contextmanager
def nothing_is_blocked() -> Iterator[None]:
    """A refused key does not wait."""
    with (
        patch.object(failures, "_block", lambda *_: None),
        patch.object(
            failures_at_once, "store_retries", lambda *told, **_: [f for f, _ in told[-1]]
        ),
    ):
        yield


def row_of_a_failure_is_not_locked() -> Any:
    """Who stores a failure looks whether its row is there, and does not hold it."""
    return patch.object(failures, "for_update", lambda _, statement: statement)


def all_of_a_page_at_once() -> Any:
    """All rows of a page are sent, whatever becomes of those before."""
    return patch.object(RelayActor, "heeds_lanes", False)  # noqa: FBT003 - the attribute's value
