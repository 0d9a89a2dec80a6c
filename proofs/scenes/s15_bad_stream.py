"""15: a stream that loses what it acknowledged, or forgets ids at once, is named by `doctor`.

As docs/guides/doctor.md has it, a relay does not refuse such a stream: it warns of settings that
lose messages, by their names, and publishes. After the mend that `doctor` tells, it finds nothing
wrong, the relay is silent, and all that is published is there. (Redis streams, and their MAXLEN,
are no broker of this version.)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from typing import Any

import nats
from nats.js import api
from sqlalchemy.orm import Session

from proofs.chaos.stream import NAME
from proofs.outages import relaying
from proofs.registry import Outcome
from proofs.scenes.world import World, told, world

MOST = 10  # messages that the bad stream keeps
LOST = 25  # more than that are published to it, once
EVENTS = 200


def show() -> Outcome:
    """The bad settings one by one; what the first one costs; then the mend."""
    wrong: list[str] = []
    measured: dict[str, Any] = {}
    bad: dict[str, dict[str, Any]] = {
        "discard=old with max_msgs": {"discard": api.DiscardPolicy.OLD, "max_msgs": MOST},
        "duplicate_window of 1 s": {"duplicate_window": 1.0},
    }
    for name, settings in bad.items():
        with world(stream_settings={"duplicate_window": 120.0, **settings}) as on:
            found = named(on)
            warned = log_of_a_relay(on, MOST - 2)
            measured[name] = {"doctor": found, "relay warns": warned}
            if name.startswith("discard"):
                wrong += judged_losing(on, name, found, warned)
                measured[name]["lost of what was acknowledged"] = what_is_lost(on)
            else:
                wrong += judged_window(on, name, found, warned)
    with world(
        stream_settings={"duplicate_window": 1.0, **bad["discard=old with max_msgs"]}
    ) as on:
        both = named(on)
        asyncio.run(mend(on))
        left = named(on)
        warned = log_of_a_relay(on, EVENTS)
        violations, counts = on.check()
    if set(both) != {"nats.losses", "nats.dedup_window"} or left or warned:
        wrong.append(f"both: {both}, mended: {left}, the relay still warns: {warned}")
    return Outcome(
        not wrong and not violations and counts["delivered"] == EVENTS,
        {
            **measured,
            "both at once": sorted(both),
            "left after the mend": left,
            **counts,
            "first violations": [*wrong, *told(violations)][:20],
        },
    )


def named(on: World) -> dict[str, str]:
    """What `outbox-saga doctor` says is an error or a warning, of this stream: its words."""
    command = [sys.executable, "-m", "outbox_saga_relay", "doctor", "--json"]
    done = subprocess.run(
        [*command, "--broker", on.broker_url],
        cwd=relaying.ROOT,
        stdout=subprocess.PIPE,
        check=False,
    )
    report = json.loads(done.stdout)
    if (done.returncode == 0) != (report["errors"] == 0):
        raise AssertionError(f"exit {done.returncode} with {report['errors']} errors")
    return {
        one["check"]: f"{one['level']}: {one['what']}; {one['do']}"
        for one in report["findings"]
        if one["level"] in ("error", "warning")
    }


def log_of_a_relay(on: World, events: int) -> list[str]:
    """All that it says at level warning while it publishes so many events."""
    with Session(on.database.engine) as session, session.begin():
        for number in range(events):
            on.publish(session, b'{"n":%d}' % number, key=f"key{number % 7}")
    with tempfile.TemporaryFile() as log:
        with relaying.relay(
            on.database, on.broker_url, "--log-level", "warning", log=log.fileno()
        ):
            on.quiesce()
        log.seek(0)
        return [line for line in log.read().decode().splitlines() if line.strip()]


def judged_losing(on: World, name: str, found: dict[str, str], warned: list[str]) -> list[str]:
    """It is an error to `doctor`, and a warning of the relay names it."""
    wrong = []
    if list(found) != ["nats.losses"] or name not in found["nats.losses"]:
        wrong.append(f"{name}: doctor says {found}")
    if "error" not in found.get("nats.losses", "") or "discard=new" not in str(found):
        wrong.append(f"{name}: no error with its mend: {found}")
    if len(warned) != 1 or name not in warned[0]:
        wrong.append(f"{name}: the relay says {warned}")
    violations, _ = on.check()
    return [*wrong, *told(violations)]


def judged_window(on: World, name: str, found: dict[str, str], warned: list[str]) -> list[str]:
    """It is a warning to `doctor` alone: repeats within it are the inbox's affair anyway."""
    wrong = []
    if list(found) != ["nats.dedup_window"] or "within 1 s" not in found["nats.dedup_window"]:
        wrong.append(f"{name}: doctor says {found}")
    if warned:
        wrong.append(f"{name}: the relay says {warned}")
    violations, _ = on.check()
    return [*wrong, *told(violations)]


def what_is_lost(on: World) -> int:
    """More is published than such a stream keeps: how many it has dropped."""
    log_of_a_relay(on, LOST)
    return asyncio.run(missing(on))


async def missing(on: World) -> int:
    """Messages that the stream has acknowledged and has no more."""
    client = await nats.connect(on.nats.url)
    try:
        state = (await client.jetstream().stream_info(NAME)).state
        return int(state.last_seq - state.messages)
    finally:
        await client.close()


async def mend(on: World) -> None:
    """As the findings say: discard=new, room, and a window longer than the relay waits."""
    client = await nats.connect(on.nats.url)
    try:
        js = client.jetstream()
        config = (await js.stream_info(NAME)).config
        config.discard = api.DiscardPolicy.NEW
        config.max_msgs = 100_000
        config.duplicate_window = 150.0
        await js.update_stream(config)
    finally:
        await client.close()
