"""Today's tree against an earlier revision of it: the same program, in turn with either."""

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from benchmarks._tables import Table, median, ratio
from benchmarks.measures import MEASURES, Taken

__all__ = ["BEFORE", "run"]

BEFORE = "b2d4a57"
"""The revision to compare with: the last one before the edges were rebuilt."""

_ROOT = Path(__file__).parent.parent
_PROGRAM = Path(__file__).with_name("measures.py")


@contextmanager
def _exported(revision: str) -> Iterator[Path | None]:
    """Make a folder with the package as it was; None: there is no such revision here."""
    try:
        archive = subprocess.run(
            ["git", "archive", revision, "trio_sessions"],
            cwd=_ROOT,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="trio-sessions-before-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)


def _measure(tree: Path, name: str, scale: float) -> Taken:
    """Run the program with the package of one tree."""
    ran = subprocess.run(
        [sys.executable, "-P", str(_PROGRAM), name, "--scale", str(scale)],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        check=True,
    )
    said = json.loads(ran.stdout)
    assert Path(said["code"]).is_relative_to(tree), "it has measured something else"
    seconds, cpu = said["taken"]
    return seconds, cpu


def _pair(before: Path, name: str, pairs: int, scale: float) -> list[tuple[Taken, Taken]]:
    """Measure in turn; who is first changes each time, for a machine that warms up."""
    taken: list[tuple[Taken, Taken]] = []
    for number in range(pairs):
        if number % 2:
            now = _measure(_ROOT, name, scale)
            taken.append((_measure(before, name, scale), now))
        else:
            then = _measure(before, name, scale)
            taken.append((then, _measure(_ROOT, name, scale)))
    return taken


def _row(name: str, taken: list[tuple[Taken, Taken]]) -> tuple[str, ...]:
    ratios = [now[0] / then[0] for then, now in taken]
    cpu = [now[1] / then[1] for then, now in taken]
    quarters = statistics.quantiles(ratios) if len(ratios) > 1 else ratios * 3
    return (
        name,
        _figure(median([then[0] for then, _ in taken])),
        _figure(median([now[0] for _, now in taken])),
        ratio(median(ratios), 1.0),
        ratio(quarters[0], 1.0),
        ratio(quarters[2], 1.0),
        ratio(median(cpu), 1.0),
    )


def run(
    server: sa.URL, *, quick: bool, before: str = BEFORE, only: Sequence[str] = ()
) -> list[Table]:
    """Compare this tree with the revision ``before``, in all measures or some."""
    pairs, scale = (1, 0.02) if quick else (15, 1.0)
    with _exported(before) as folder:
        if folder is None:
            print(f"before: skipped, revision {before} is not here (git fetch --unshallow)")
            return []
        for tree in (folder, _ROOT):  # the first one compiles
            _measure(tree, next(iter(MEASURES)), 0.02)
        rows = [_row(name, _pair(folder, name, pairs, scale)) for name in only or MEASURES]
    return [
        Table(
            title=f"before: revision {before}, and this tree",
            columns=("", "before", "now", "ratio", "lower quarter", "upper quarter", "of CPU"),
            rows=rows,
            notes=(
                f"{pairs} pairs of processes, in turn; medians, and those of the pairs' ratios",
                "of CPU: the same by the processor's time, which a busy machine disturbs less",
                "on the memory store; target: a ratio of at most 1.15x",
            ),
        )
    ]


def _figure(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"
