"""``make mutants``."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mutants.judging import Judgement, read_explained
from mutants.making import make_mutants
from mutants.meeting import digest
from mutants.mutant import Mutant
from mutants.running import Copy, Results, Runner, in_order, record

ROOT = Path(__file__).parent.parent.parent
EXPLAINED = Path(__file__).parent / "explained.toml"
KEPT = ROOT / ".mutants"
ALONE = """
    _cleanup _passes _verdicts _brake _witness _table _entry _writer _claims _departures _leaving
    _sessions _owners _restoring _stamping _strays _sweeping _portions _pending
    _tally _orders _lines _undecided _life
"""


def find_modules(patterns: tuple[str, ...]) -> list[str]:
    """Return the modules with such a part in their path; PostgreSQL's only if that is named."""
    package = ROOT / "trio_sessions"
    paths = [package / f"{name}.py" for name in ALONE.split()]
    paths += sorted(package.glob("_messages/*.py")) + sorted(package.glob("stores/**/*.py"))
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    if not any("postgresql" in one for one in patterns):
        names = [name for name in names if "/postgresql/" not in name]
    return [name for name in names if any(one in name for one in patterns or [""])]


@click.command()
@click.option("--budget", default=180.0, help="Minutes; what they do not suffice for is left out.")
@click.option("--most", type=int, help="How many mutants are run, at most.")
@click.option("--seed", default=11, help="Of the order, of which the budget takes the beginning.")
@click.option("--modules", multiple=True, help="A part of a path; may be given more than once.")
@click.option("--patience", default=60.0, help="Seconds of tests that a mutant has to survive.")
@click.option("--only-known", is_flag=True, help="Run nothing: judge what was run before.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the figures to this file.")
def main(
    *,
    budget: float,
    most: int | None,
    seed: int,
    modules: tuple[str, ...],
    patience: float,
    only_known: bool,
    report: Path | None,
) -> None:
    """Put small faults into the code, one by one, and see whether a test notices each.

    Fails where a survivor is not explained in tests/mutants/explained.toml, where an explanation is
    of what is not in the code any more, and where too few are killed. Ctrl-C stops it; the next
    call goes on there.
    """
    os.nice(10)
    found, every = find_modules(modules), find_modules(("", "/postgresql/"))
    has_server = "TRIO_SESSIONS_TEST_POSTGRESQL_URL" in os.environ
    if any("/postgresql/" in name for name in found) and not has_server:
        raise click.UsageError("name a server in TRIO_SESSIONS_TEST_POSTGRESQL_URL, for its tests")
    KEPT.mkdir(exist_ok=True)
    console = Console()
    try:
        with (
            TemporaryDirectory(prefix="copy-", dir=KEPT, ignore_cleanup_errors=True) as folder,
            closing(Copy(ROOT, Path(folder))) as copy,
        ):
            digests = {name: digest([copy.path / name]) for name in found}
            results = Results(KEPT / "results.jsonl", digests)
            with console.status("making mutants"):
                made = [one for name in found for one in make_mutants(name, copy.text(name))]
            chosen = in_order(made, seed)[:most]
            if not only_known:
                with console.status("recording which tests meet which lines, if that is not known"):
                    meeting = record(copy, KEPT, every, postgresql=has_server)
                _run(Runner(copy, meeting, results, patience), chosen, budget * 60, console)
    except KeyboardInterrupt:
        console.print("stopped: the next call goes on here")
        sys.exit(130)
    judgement = Judgement(
        made,
        results.of(chosen),
        read_explained(EXPLAINED),
        killed_at_first=results.count_killed_at_first(chosen),
    )
    if report is not None:
        report.parent.mkdir(exist_ok=True)
        report.write_text(judgement.report(seed=seed), "utf-8")
    for one in judgement.open:
        console.print(f"survived, and is not explained: {one}", markup=False, highlight=False)
    for stale in judgement.stale:
        console.print(f"explained, but not in the code: {stale}", markup=False, highlight=False)
    console.print(judgement.summary)
    sys.exit(0 if judgement.is_good else 1)


def _run(runner: Runner, chosen: Sequence[Mutant], seconds: float, console: Console) -> None:
    """Run mutants until the time is up, and show how far that is."""
    columns = (
        TextColumn("mutants"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[survived]} survived"),
        TimeElapsedColumn(),
    )
    stop, survived = time.monotonic() + seconds, 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("mutants", total=len(chosen), survived=0)
        for mutant in chosen:
            if time.monotonic() > stop and not runner.knows(mutant):
                break
            survived += not runner.run(mutant).is_killed
            progress.update(task, advance=1, survived=survived)


if __name__ == "__main__":
    main()
