"""`outbox-saga saga check`: whether these definitions may be released."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from outbox_saga.errors import ConfigurationError
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.saga.snapshot import Alive, Finding, Snapshot, compare, take_snapshot
from outbox_saga.service import Service
from outbox_saga_relay.printing import json_option, print_json, print_rows
from outbox_saga_relay.programs import load_service


@click.command()
@click.argument("service")
@click.option(
    "--snapshot",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("sagas.json"),
    show_default=True,
    help="The file in the repository that keeps what was released.",
)
@click.option(
    "--write", is_flag=True, help="Take new versions into the snapshot, and gone ones out."
)
@click.option(
    "--with-database", is_flag=True, help="Ask the database of SERVICE which versions are needed."
)
@json_option
def check(*, service: str, path: Path, write: bool, with_database: bool, as_json: bool) -> None:
    """Compare the sagas of SERVICE (module:attribute) with the snapshot in the repository, and
    with the instances alive in its database; exit code 1 if they may not be released so.

    A running instance is carried on by the definition it was started with, or not at all. What was
    changed without a new version, or taken away too early, would park it.
    """
    loaded = load_service(service)
    here = take_snapshot(loaded.sagas)
    kept = _read(path, or_else=take_snapshot(())) if path.exists() or not write else here
    alive = asyncio.run(_alive(loaded)) if with_database else None
    found = compare(kept, here, alive)
    refused = any(finding.refuses for finding in found)
    if write and not refused:
        path.write_text(json.dumps(here, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        found = [finding for finding in found if finding.kind not in ("new", "gone", "taken over")]
    _tell(found, as_json=as_json)
    if found:
        raise click.exceptions.Exit(1)


def _read(path: Path, *, or_else: Snapshot) -> Snapshot:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return or_else
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is no JSON ({error}); take it from the repository"
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("sagas"), dict):
        raise ConfigurationError(f"{path} is no snapshot of sagas; make one with --write")
    return found


async def _alive(service: Service) -> Alive:
    try:
        return await SagaOperations(service.database).alive(service.name)
    finally:
        await service.close()


def _tell(found: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "findings": [
                    {
                        "saga": finding.saga,
                        "version": finding.version,
                        "kind": finding.kind,
                        "refused": finding.refuses,
                        "text": finding.text,
                    }
                    for finding in found
                ]
            }
        )
        return
    print_rows(
        ("saga", "version", "what", "and the mend"),
        [(f.saga, str(f.version), f.kind, f.text) for f in found],
    )
