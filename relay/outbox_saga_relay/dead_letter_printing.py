"""How dead letters, their groups and a plan about them look, to people and to programs."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import click

from outbox_saga.dead_letters import DeadLetter, Plan
from outbox_saga_relay.operator_options import LINES, warn
from outbox_saga_relay.printing import print_json, print_rows, shown


def _place(letter: DeadLetter) -> str:
    if letter.key is None:
        return "-"
    return "kept" if letter.parked else "lost"


def _moment(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def letter_as_json(letter: DeadLetter) -> dict[str, Any]:
    """Without payload, error text and trace."""
    return {
        "id": str(letter.id),
        "version": letter.version,
        "position": letter.position,
        "topic": letter.topic,
        "key": letter.key,
        "place": _place(letter),
        "size": letter.size,
        "created_at": letter.created_at.isoformat(),
        "died_at": letter.died_at.isoformat(),
        "attempts": letter.attempts,
        "error_code": letter.error_code,
        "error_class": letter.error_class,
        "replays": _replays(letter.headers),
    }


def _replays(headers: str) -> int:
    try:
        return int(json.loads(headers).get("replay", 0))
    except (AttributeError, TypeError, ValueError):
        return 0  # metadata that cannot be read, which is why it is here


_COLUMNS = ("position", "id", "topic", "key", "place", "code", "attempts", "died", "version")


def print_letters(letters: Sequence[DeadLetter]) -> None:
    """A line for each."""
    print_rows(
        _COLUMNS,
        [
            (
                str(each.position),
                str(each.id),
                each.topic,
                "-" if each.key is None else each.key,
                _place(each),
                each.error_code,
                str(each.attempts),
                _moment(each.died_at),
                each.version,
            )
            for each in letters
        ],
    )


def _groups_as_json(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "topic": group.topic,
            "error_code": group.error_code,
            "count": group.count,
            "overtaken": group.overtaken,
            "first": group.first.isoformat(),
            "last": group.last.isoformat(),
        }
        for group in plan.groups
    ]


def print_groups(plan: Plan, *, as_json: bool) -> None:
    """A line for each topic and error code."""
    if as_json:
        print_json({"count": plan.count, "groups": _groups_as_json(plan)})
        return
    print_rows(
        ("count", "topic", "code", "place lost", "first", "last"),
        [
            (
                str(group.count),
                group.topic,
                group.error_code,
                str(group.overtaken),
                _moment(group.first),
                _moment(group.last),
            )
            for group in plan.groups
        ],
    )


def print_plan(plan: Plan, verb: str, *, as_json: bool, err: bool = False) -> None:
    """How many, the first of them, and what they give up.

    Args:
        verb: What would be done, as in "replayed".
        err: To standard error, before a question.
    """
    if as_json:
        sample = [letter_as_json(each) for each in plan.sample]
        print_json(
            {
                "plan": verb,
                "count": plan.count,
                "overtaken": plan.overtaken,
                "groups": _groups_as_json(plan),
                "sample": sample,
            }
        )
        return
    for each in plan.sample[:LINES]:
        key = "no key" if each.key is None else f"key {each.key}"
        line = f"{each.position}  {each.id}  {each.topic}  {key}  {each.error_code}"
        click.echo(shown(line), err=err)
    if plan.count > len(plan.sample[:LINES]):
        click.echo(f"… and {plan.count - len(plan.sample[:LINES])} more", err=err)
    click.echo(f"{plan.count} would be {verb}", err=err)
    warn_of_overtaken(plan, verb)


def warn_of_overtaken(plan: Plan, verb: str) -> None:
    """Says how many come out of their order."""
    if plan.overtaken and verb == "replayed":
        warn(
            f"{plan.overtaken} of them have lost their place: their keys are not parked for them, "
            "so later messages of these keys may have been published already"
        )
