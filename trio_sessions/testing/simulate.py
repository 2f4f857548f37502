"""The simulated fleet as a command: ``python -m trio_sessions.testing.simulate --seed 1``.

It needs click and rich, which the extra ``testing`` brings.
"""

import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trio_sessions.testing._simulation import (
    MIXES,
    MOST_WORKERS,
    PROFILES,
    Run,
    SimulationReport,
    counted,
    page,
    picture,
    plan,
    play,
    run_once,
    simulate,
)

__all__ = ["main"]

_EVERY = 10.0  # seconds from one line of progress to the next, where there is no terminal
_NAME_OF_RUN = re.compile(r"\d+(-\d+)?")
_ONLY_ONE = ("mix", "digest")
_ONLY_MANY = ("seed", "kept", "profile")
_NOT_OF_A_PROFILE = ("seed", "steps", "workers")


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
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default=None,
    help="Fixed runs: some seconds, a minute, or half an hour; without --seed, --steps, --workers.",
)
@click.option("--run", "one", default=None, help="Only this run, as a failure names it: 1-17, say.")
@click.option("--mix", type=click.Choice(list(MIXES)), default="all", help="With --run: its rules.")
@click.option(
    "--report",
    "kept",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=None,
    help="Write what was done into this file too, as Markdown; not with --run.",
)
@click.option("--digest", is_flag=True, help="With --run: print the digest of the trace.")
@click.pass_context
def main(
    context: click.Context,
    seed: int,
    steps: int,
    workers: int | None,
    *,
    profile: str | None,
    one: str | None,
    mix: str,
    kept: Path | None,
    digest: bool,
) -> None:
    """Let real registries run on a simulated database, with faults of every kind.

    The exit code is 1 where an invariant does not hold. The same arguments give the same run.
    A thousand steps take about a minute on two busy cores. What is done so far is told on stderr:
    by a bar, or by a line every ten seconds where that is no terminal.
    """
    _check(context, one, profile)
    console = Console()
    planned = PROFILES[profile] if profile else tuple(plan(seed=seed, steps=steps, workers=workers))
    with _progress(sum(run.steps for run in planned) if one is None else steps) as on_step:
        if one is None:
            report = play(planned, on_step=on_step)
        else:
            report = SimulationReport()
            report.add(run_once(one, steps=steps, workers=workers or 3, mix=mix, on_step=on_step))
            if digest:
                console.print(f"digest {report.digests[0]}")
    _print(console, report)
    if kept is not None:
        kept.write_text(page(report, origin=_origin(profile, seed)), encoding="utf-8")
    for run in report.failures:
        _print_failure(console, run)
    if report.failures:
        sys.exit(1)


def _check(context: click.Context, one: str | None, profile: str | None) -> None:
    """Refuse what would have no effect, and a run that no failure has named."""
    given = _given(context, _ONLY_ONE if one is None else _ONLY_MANY)
    if given and one is None:
        raise click.UsageError(f"{given[0]} is for one run: name it by --run, as a failure does")
    if given:
        raise click.UsageError(f"{given[0]} is for many runs: leave it out, or leave out --run")
    fixed = _given(context, _NOT_OF_A_PROFILE) if profile else []
    if fixed:
        raise click.UsageError(f"a profile has its own {fixed[0]}: leave it out, or the profile")
    if one is not None and _NAME_OF_RUN.fullmatch(one) is None:
        raise click.BadParameter(
            f"{one!r} is no run; a failure names one, such as 1-17: the eighteenth of --seed 1",
            param_hint="--run",
        )


def _given(context: click.Context, names: Collection[str]) -> list[str]:
    """Return those of these options that were given, as they are written."""
    return [
        option.opts[0]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]


def _origin(profile: str | None, seed: int) -> str:
    """Say where runs come from; the deep ones are those of a seed."""
    return f"seed {seed}" if profile in {None, "deep"} else f"the profile {profile}"


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """Return what is to be called after each step."""
    console = Console(stderr=True)
    done, told_at = 0, time.monotonic()

    def tell() -> None:
        nonlocal done, told_at
        done += 1
        if time.monotonic() - told_at >= _EVERY:
            told_at = time.monotonic()
            click.echo(f"{done} of {steps} steps", err=True)

    if console.is_terminal:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("steps", total=steps)
            yield lambda: progress.advance(task)
    else:
        yield tell


def _print(console: Console, report: SimulationReport) -> None:
    console.print(
        f"{counted(report.steps, 'step')} in {counted(report.runs, 'run')}, {report.rate:.0f} "
        f"steps/s; {report.virtual:.0f} s of virtual time, {counted(report.commits, 'commit')}",
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
        console.print("rules never followed:", ", ".join(report.rules_never_followed))
    console.print(f"violations: {report.wrong} (a removal that was wrong is one)")


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
