"""The simulated fleet as a command: ``python -m trio_sessions.testing.simulate --seed 1``.

It needs click and rich, which the extra ``testing`` brings.
"""

import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trio_sessions.testing._simulation import (
    MIXES,
    MOST_WORKERS,
    Run,
    SimulationReport,
    page,
    picture,
    run_once,
    simulate,
)

__all__ = ["main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, default=1, show_default=True, help="Of chance.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="In all."
)
@click.option(
    "--workers",
    type=click.IntRange(2, MOST_WORKERS),
    default=None,
    help="Registries in each run; by default 2, 3, 4 and 5 in turn.",
)
@click.option("--run", "one", default=None, help="Only this run, as a failure names it.")
@click.option("--mix", type=click.Choice(list(MIXES)), default="all", help="With --run: its rules.")
@click.option(
    "--report",
    "kept",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=None,
    help="Write what was done into this file too, as Markdown; not with --run.",
)
@click.option("--digest", is_flag=True, help="With --run: print the digest of the trace.")
def main(
    seed: int,
    steps: int,
    workers: int | None,
    *,
    one: str | None,
    mix: str,
    kept: Path | None,
    digest: bool,
) -> None:
    """Let real registries run on a simulated database, with faults of every kind.

    The exit code is 1 where an invariant does not hold. The same arguments give the same run.
    """
    if one is not None and kept is not None:
        raise click.UsageError("--report is for many runs, and --run is one")
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("steps", total=steps)

        def on_step() -> None:
            progress.advance(task)

        if one is None:
            report = simulate(seed=seed, steps=steps, workers=workers, on_step=on_step)
        else:
            report = SimulationReport()
            report.add(run_once(one, steps=steps, workers=workers or 3, mix=mix, on_step=on_step))
            if digest:
                console.print(f"digest {report.digests[0]}")
    _print(console, report)
    if kept is not None:
        kept.write_text(page(report, seed=seed), encoding="utf-8")
    for run in report.failures:
        _print_failure(console, run)
    if report.failures:
        sys.exit(1)


def _print(console: Console, report: SimulationReport) -> None:
    console.print(
        f"{report.steps} steps in {report.runs} runs, {report.rate:.0f} steps/s; "
        f"{report.virtual:.0f} s of virtual time, {report.commits} commits",
        highlight=False,
    )
    for title, counts in (
        ("faults injected", report.faults),
        ("rules followed", report.rules),
        ("removals that were right", report.right),
        ("answers that were judged", report.judged),
    ):
        table = Table(title=title, title_justify="left", show_header=False)
        for name, count in counts.most_common():
            table.add_row(name, str(count))
        console.print(table)
    if report.rules_never_followed:
        console.print("never followed:", ", ".join(report.rules_never_followed))
    console.print(f"violations, removals that were wrong among them: {report.wrong}")


def _print_failure(console: Console, run: Run) -> None:
    console.print(picture(run.events, run.workers), soft_wrap=True, markup=False, highlight=False)
    for violation in run.violations:
        console.print(violation, style="bold red", markup=False, highlight=False, soft_wrap=True)
    mix = shlex.quote(run.mix)
    console.print(
        "again: python -m trio_sessions.testing.simulate "
        f"--run {run.seed} --steps {run.asked} --workers {run.workers} --mix {mix}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


class _Callable(ModuleType):
    """Is this module, and the function of the same name: importing it hides that one."""

    def __call__(self, **arguments: Any) -> SimulationReport:
        return simulate(**arguments)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
