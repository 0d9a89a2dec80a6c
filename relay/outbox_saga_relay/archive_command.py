"""`outbox-saga archive`: what was published, sent again by a person's decision."""

from __future__ import annotations

import datetime as dt

import click

from outbox_saga.archive import Archive, Plan, Published
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.housekeeping import INBOX_WINDOW
from outbox_saga_relay.opened_database import looking, opened
from outbox_saga_relay.operator_options import (
    confirm,
    decided,
    operator_option,
    plan_option,
    progress,
    rate_option,
    reason_option,
    stoppable,
    warn,
    yes_option,
)
from outbox_saga_relay.printing import json_option, print_fields, print_json, print_rows
from outbox_saga_relay.times import MOMENT, STRETCH, at
from outbox_saga_relay.typed import refuse_typed


@click.group()
def archive() -> None:
    """Send again what was published, as far back as the archive goes."""


@archive.command()
@database_url_option
@schema_option
@click.option(
    "--since", type=MOMENT, required=True, help="Published since then, as in 2h or 2026-01-31."
)
@click.option("--until", type=MOMENT, help="Published before then. [default: now]")
@click.option("--topic", help="Only of this topic.")
@click.option("--key", help="Only of this key.")
@click.option(
    "--inbox-window",
    type=STRETCH,
    envvar="OUTBOX_SAGA_INBOX_WINDOW",
    default=INBOX_WINDOW,
    show_default="30d",
    show_envvar=True,
    help="How long the consumers' inboxes remember. Older ones may be handled again.",
)
@rate_option
@plan_option
@yes_option
@operator_option
@reason_option
@json_option
def replay(
    database_url: str,
    schema: str | None,
    since: dt.datetime | dt.timedelta,
    until: dt.datetime | dt.timedelta | None,
    topic: str | None,
    key: str | None,
    inbox_window: float,
    rate: float | None,
    operator: str | None,
    reason: str | None,
    *,
    only_plan: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send again what was published, in the order in which it was.

    For a broker that lost what it had. The messages keep their ids, so consumers with an inbox
    drop those they have handled. They come after everything that waits: they give up their place
    in the order.
    """
    if only_plan:
        refuse_typed("rate", "yes", why="--plan sends nothing")
    with opened(database_url, schema) as database:
        kept = Archive(database)
        with looking(database) as connection:
            now = database.clock.read(connection)
            wanted = Published(topic, key, at(since, now), at(until, now))
            plan = kept.plan(connection, wanted, inbox_window=inbox_window)
        if only_plan:
            _print_plan(plan, as_json=as_json)
            return
        if plan.count:
            _warn(plan)
            confirm(plan.count, f"{plan.count} messages are sent again.", yes=yes)
        decision = decided(operator, reason)
        with stoppable() as stop, progress("sent again", plan.count) as show_progress:
            run = kept.replay(decision, plan.wanted, rate=rate)
            if plan.count:  # what was published since was not in the plan
                run.run(stop, told=lambda s: show_progress(s.messages + s.waiting))
        sent = run.sent
    reached = run.reached.published_at.isoformat() if run.reached is not None else None
    stopped = stop.is_set()
    if as_json:
        print_json(
            {
                "sent": sent.messages,
                "waiting": sent.waiting,
                "reached": reached,
                "stopped": stopped,
            }
        )
    else:
        print_fields([("sent again", str(sent.messages)), ("wait already", str(sent.waiting))])
        if stopped:
            warn(
                "stopped before anything was sent"
                if reached is None
                else f"stopped; what was published after {reached} was not sent: --since goes on"
            )
    if stopped:
        raise click.exceptions.Exit(1)


def _warn(plan: Plan) -> None:
    warn("They give up their place: they come after all that waits now, in their own order.")
    if plan.forgotten:
        warn(
            f"{plan.forgotten} of them are older than what inboxes remember: consumers may "
            "handle them a second time."
        )


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        topics = [
            {
                "topic": each.topic,
                "count": each.count,
                "forgotten": each.forgotten,
                "first": each.first.isoformat(),
                "last": each.last.isoformat(),
            }
            for each in plan.topics
        ]
        print_json({"count": plan.count, "forgotten": plan.forgotten, "topics": topics})
        return
    print_rows(
        ("topic", "count", "forgotten", "first", "last"),
        [
            (
                each.topic,
                str(each.count),
                str(each.forgotten),
                each.first.isoformat(timespec="seconds"),
                each.last.isoformat(timespec="seconds"),
            )
            for each in plan.topics
        ],
    )
    if plan.count:
        _warn(plan)
