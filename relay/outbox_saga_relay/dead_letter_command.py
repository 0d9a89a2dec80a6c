"""`outbox-saga dead-letter`: what no broker took, and what a person decides about it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import click

from outbox_saga.database import Database
from outbox_saga.dead_letters import DeadLetter, DeadLetters, Matching, Plan, PutBack, Sweep, Swept
from outbox_saga.decisions import Decision
from outbox_saga.errors import SeenChanged
from outbox_saga.pacing import Pace
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.dead_letter_printing import (
    letter_as_json,
    print_groups,
    print_letters,
    print_plan,
    warn_of_overtaken,
)
from outbox_saga_relay.opened_database import looking, opened
from outbox_saga_relay.operator_options import (
    LINES,
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
from outbox_saga_relay.parked_keys_command import keys
from outbox_saga_relay.printing import json_option, print_fields, print_json, shown
from outbox_saga_relay.times import MOMENT, at
from outbox_saga_relay.typed import is_typed, refuse_typed

Wanted = dict[str, Any]


def _filters(command: Any) -> Any:
    options = (
        click.option("--topic", help="Only of this topic."),
        click.option("--key", help="Only of this key."),
        click.option("--code", help="Only with this error code."),
        click.option("--since", type=MOMENT, help="Only those that died since then, as in 2h."),
        click.option("--until", type=MOMENT, help="Only those that died before then."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _matching(database: Database, wanted: Wanted) -> Matching:
    with looking(database) as connection:
        now = database.clock.read(connection)
    moments = {name: at(wanted[name], now) for name in ("since", "until")}
    return Matching(wanted["topic"], wanted["key"], wanted["code"], **moments)


@click.group(name="dead-letter")
def dead_letter() -> None:
    """Decide about messages that no broker took.

    A dead letter keeps everything: the message, its place in the order, what the broker said. Its
    key is parked, so that nothing overtakes it, until you replay or discard it, or unpark the key.
    """


@dead_letter.command(name="list")
@database_url_option
@schema_option
@_filters
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--after", type=int, metavar="POSITION", help="The page after this one's last.")
@click.option("--groups", is_flag=True, help="Count by topic and error code instead.")
@json_option
def list_(
    database_url: str,
    schema: str | None,
    limit: int,
    after: int | None,
    *,
    groups: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """List dead letters, in the order of their positions.

    "place" says what a replay does: "kept" goes before all later messages of its key, "lost" comes
    after some that may have left, "-" has no key and no order.
    """
    if groups and (after is not None or is_typed("limit")):
        raise click.UsageError("--groups counts all that match: it has no pages")
    with opened(database_url, schema) as database:
        letters, matching = DeadLetters(database), _matching(database, wanted)
        with looking(database) as connection:
            if groups:
                print_groups(letters.plan(connection, matching, sample=1), as_json=as_json)
                return
            found = letters.find(connection, matching, after=after, limit=limit)
    following = found[-1].position if len(found) >= limit else None
    if as_json:
        print_json({"letters": [letter_as_json(each) for each in found], "after": following})
        return
    print_letters(found)
    if following is not None:
        click.echo(f"the next page: --after {following}", err=True)


@dead_letter.command()
@click.argument("id", type=click.UUID)
@database_url_option
@schema_option
@click.option("--body", "with_body", is_flag=True, help="Show the payload, too.")
@json_option
def show(
    id: UUID,  # noqa: A002 - click's argument
    database_url: str,
    schema: str | None,
    *,
    with_body: bool,
    as_json: bool,
) -> None:
    """Show one dead letter; its payload only when you ask for it."""
    body = None
    with opened(database_url, schema) as database, looking(database) as connection:
        letters = DeadLetters(database)
        letter = letters.get(connection, id)
        if with_body:
            body = letters.body(connection, letter)
    told = letter_as_json(letter) | {"error": letter.error, "trace": letter.trace}
    told["metadata"] = letter.headers
    if as_json:
        if body is not None:
            told["body_base64"] = base64.b64encode(body).decode()
        print_json(told)
        return
    trace = told.pop("trace")
    print_fields([(name, "-" if value is None else str(value)) for name, value in told.items()])
    if trace:
        click.echo("\n" + shown(trace, lines=True))
    if body is not None:
        click.echo("\n" + shown(body.decode("utf-8", "backslashreplace"), lines=True))


@dead_letter.command()
@click.argument("ids", type=click.UUID, nargs=-1, metavar="[ID]...")
@database_url_option
@schema_option
@_filters
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--seen", metavar="VERSION", help="Only if it is as `list` showed it. For one ID.")
@rate_option
@plan_option
@yes_option
@operator_option
@reason_option
@json_option
def replay(
    ids: tuple[UUID, ...], database_url: str, schema: str | None, rate: float | None, **rest: Any
) -> None:
    """Publish dead letters again: IDs, or all that match the options.

    Each keeps its id, its bytes and its place in the order, and its key goes on with it. Several
    go in the order of their positions.
    """
    if rest["only_plan"]:
        refuse_typed("rate", "yes", why="--plan changes nothing")
    with opened(database_url, schema) as database:
        letters = DeadLetters(database)
        _act(
            database,
            ids,
            rest,
            verb="replayed",
            one=letters.replay,
            sweep=lambda decision, matching: letters.replay_all(decision, matching, rate=rate),
            rate=rate,
        )


@dead_letter.command()
@click.argument("ids", type=click.UUID, nargs=-1, metavar="[ID]...")
@database_url_option
@schema_option
@_filters
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--seen", metavar="VERSION", help="Only if it is as `list` showed it. For one ID.")
@click.option("--unpark", is_flag=True, help="Let the later messages of their keys go.")
@plan_option
@yes_option
@operator_option
@reason_option
@json_option
def discard(
    ids: tuple[UUID, ...], database_url: str, schema: str | None, *, unpark: bool, **rest: Any
) -> None:
    """Remove dead letters for good: IDs, or all that match the options.

    Their keys stay parked unless you pass --unpark.
    """
    if rest["only_plan"]:
        refuse_typed("yes", why="--plan changes nothing")
    with opened(database_url, schema) as database:
        letters = DeadLetters(database)

        def one(connection: Any, seen: DeadLetter, decision: Decision) -> None:
            letters.discard(connection, seen, decision, unpark=unpark)

        _act(
            database,
            ids,
            rest,
            verb="discarded",
            one=one,
            sweep=lambda decision, matching: letters.discard_all(
                decision, matching, unpark=unpark
            ),
        )


@dead_letter.command()
@click.argument("key")
@database_url_option
@schema_option
@click.option("--position", type=int, help="Only if it is parked there, and nowhere else.")
@plan_option
@operator_option
@reason_option
@json_option
def unpark(
    key: str,
    database_url: str,
    schema: str | None,
    position: int | None,
    operator: str | None,
    reason: str | None,
    *,
    only_plan: bool,
    as_json: bool,
) -> None:
    """Let the later messages of KEY go without the dead letters they wait for.

    The letters stay; one that is replayed afterwards has lost its place.
    """
    with opened(database_url, schema) as database:
        letters = DeadLetters(database)
        with looking(database) as connection:
            parked = letters.parked(connection, key)
            waiting = letters.waiting(connection, key) if parked else 0
        if not parked:
            raise SeenChanged("this key is not parked; `dead-letter list --key` shows its letters")
        if position is not None and parked != [position]:
            raise SeenChanged(f"this key is parked at {parked}, not at {position}; look again")
        if not only_plan:
            decision = decided(operator, reason)
            with database.begin() as connection:
                letters.unpark(connection, key, parked, decision)
    if as_json:
        told = {"unparked": not only_plan, "positions": parked, "waiting": waiting}
        print_json(told)
        return
    would = "would wait" if only_plan else "wait"
    click.echo(f"parked at {', '.join(map(str, parked))}; {waiting} messages {would} no longer")


dead_letter.add_command(keys)


# --- acting on many ------------------------------------------------------------------------------

One = Callable[[Any, DeadLetter, Decision], object]


def _act(
    database: Database,
    ids: Sequence[UUID],
    told: Wanted,
    *,
    verb: str,
    one: One,
    sweep: Callable[[Decision, Matching], Sweep],
    rate: float | None = None,
) -> None:
    """Plans, asks, acts, and says what came of it; one ID is acted on without asking."""
    narrowed = any(told[name] is not None for name in ("topic", "key", "code", "since", "until"))
    if bool(ids) + narrowed + told["everything"] != 1:
        raise click.UsageError("give IDs, or options that say which, or --all; one of them")
    if told["seen"] is not None and len(ids) != 1:
        raise click.UsageError("--seen is the version of one dead letter: give one ID")
    matching = _matching(database, told)
    plan = _plan(database, ids, matching)
    gone = len(set(ids)) - plan.count if ids else 0
    if told["seen"] is not None and plan.sample[0].version != told["seen"]:
        raise SeenChanged(f"dead letter {ids[0]} has died again since you looked; look again")
    if told["only_plan"]:
        print_plan(plan, verb, as_json=told["as_json"])
        return
    if told["yes"] or len(ids) == 1:
        warn_of_overtaken(plan, verb)
    elif plan.count:
        print_plan(plan, verb, as_json=False, err=True)
        confirm(plan.count, f"{plan.count} dead letters are {verb}.", yes=told["yes"])
    decision = decided(told["operator"], told["reason"])
    with stoppable() as stop:
        if ids:
            swept = _each(database, plan.sample, decision, one, Pace(rate), stop)
            swept = Swept(swept.done, swept.changed + gone)
        elif not plan.count:
            swept = Swept()  # what has died since was not in the plan
        else:
            with progress(verb, plan.count) as show_progress:
                swept = sweep(decision, plan.matching).run(
                    stop, told=lambda swept: show_progress(swept.done + swept.changed)
                )
    if told["as_json"]:
        print_json({verb: swept.done, "changed": swept.changed, "overtaken": plan.overtaken})
    else:
        print_fields(
            [(verb, str(swept.done)), ("changed meanwhile, left alone", str(swept.changed))]
        )
    if stop.is_set():
        warn("stopped; the same command again does the rest")
    if swept.changed or stop.is_set():
        raise click.exceptions.Exit(1)


def _plan(database: Database, ids: Sequence[UUID], matching: Matching) -> Plan:
    letters = DeadLetters(database)
    with looking(database) as connection:
        if not ids:
            return letters.plan(connection, matching, sample=LINES)
        chosen: list[DeadLetter] = []
        for id_ in dict.fromkeys(ids):
            try:
                chosen.append(letters.get(connection, id_))
            except SeenChanged:  # of several, some may have been acted on before
                if len(ids) == 1:
                    raise
    chosen.sort(key=lambda letter: letter.position)
    return Plan(
        len(chosen), sum(not each.keeps_its_place for each in chosen), [], chosen, matching
    )


def _each(
    database: Database,
    chosen: Sequence[DeadLetter],
    decision: Decision,
    one: One,
    pace: Pace,
    stop: threading.Event,
) -> Swept:
    done = changed = 0
    for seen in chosen:
        if stop.wait(pace.pause()):
            break
        try:
            with database.begin() as connection:
                became = one(connection, seen, decision)
        except SeenChanged:
            if len(chosen) == 1:
                raise
            changed += 1
            continue
        done += 1
        pace.went(1)
        if isinstance(became, PutBack) and became.waits_behind is not None:
            warn(f"its key is parked at {became.waits_behind}, too; it waits for that one")
    return Swept(done, changed)
