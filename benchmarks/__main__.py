"""`./dev bench [BENCH…]`: measures, and prints what docs/performance.md shows."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from benchmarks import machine, plots, report
from benchmarks.measuring import QUICK, THOROUGH, say
from benchmarks.running import BENCHES, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("benches", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option("--quick", is_flag=True, help="Small sizes: minutes, not for quoting.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each measurement.")
@click.option(
    "--patience",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long to wait for a quiet machine before one measurement.",
)
@click.option(
    "--repeats",
    type=click.IntRange(0),
    help="How often a measurement that others disturbed is made again.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option(
    "--plot",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also draw the ratios into DIR/performance.svg.",
)
def main(
    *,
    benches: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    patience: float | None,
    repeats: int | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure what the library costs against the same work without it.

    BENCHES: write, relay, sagas; all of them when none is named. Needs PostgreSQL 18, which comes
    as a wheel; write also uses MariaDB where there is one.
    """
    effort = QUICK if quick else THOROUGH
    effort = replace(
        effort,
        rounds=rounds or effort.rounds,
        patience=effort.patience if patience is None else patience,
        repeats=effort.repeats if repeats is None else repeats,
    )
    began = time.monotonic()
    described = machine.describe()
    groups = []
    if not as_json:
        for label, value in described.items():
            click.echo(f"{label}: {value}")
    for group in run(benches or tuple(BENCHES), effort):
        groups.append(group)
        if not as_json:
            click.echo(f"\n{report.table(group)}")
    if as_json:
        found = report.document(groups, effort, described, time.monotonic() - began)
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        click.echo("\n" + "\n".join(f"- {note}" for note in report.notes(groups, effort)))
    if plot is not None:
        say(f"drawn: {plots.draw(groups, plot)}")
    if not groups:
        sys.exit(1)


if __name__ == "__main__":
    main()
