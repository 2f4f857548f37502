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
from typing import Any

import sqlalchemy as sa

from benchmarks._tables import Table, median, ratio
from benchmarks.measures import MEASURES, Taken

__all__ = ["BEFORE", "run"]

BEFORE = "b2d4a57"
"""The revision to compare with: the last one before the edges were rebuilt."""

Pair = tuple[Taken, Taken]
"""What the same measure took before, and takes now."""

_ROOT = Path(__file__).parent.parent
_PROGRAM = Path(__file__).with_name("measures.py")


_SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python 3.11 knows it from its fourth release on; what is unpacked is our own."""


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
            tar.extractall(folder, **_SAFELY)
        yield Path(folder)


def _measure(tree: Path, names: Sequence[str], scale: float) -> list[Taken]:
    """Run the program with the package of one tree; return what each measure took."""
    ran = subprocess.run(
        [sys.executable, "-P", str(_PROGRAM), *names, "--scale", str(scale)],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        check=True,
    )
    said = json.loads(ran.stdout)
    assert Path(said["code"]).is_relative_to(tree), "it has measured something else"
    return [(seconds, cpu) for seconds, cpu in said["taken"]]


def _pairs(before: Path, name: str, count: int) -> list[Pair]:
    """Measure in turn; who is first changes each time, for a machine that warms up."""
    pairs: list[Pair] = []
    for number in range(count):
        first, second = (before, _ROOT) if number % 2 else (_ROOT, before)
        [one], [other] = _measure(first, [name], 1.0), _measure(second, [name], 1.0)
        pairs.append((one, other) if number % 2 else (other, one))
    return pairs


def _row(name: str, pairs: list[Pair]) -> tuple[str, ...]:
    ratios = [now[0] / then[0] for then, now in pairs]
    cpu = [now[1] / then[1] for then, now in pairs]
    quarters = statistics.quantiles(ratios) if len(ratios) > 1 else ratios * 3
    return (
        name,
        _figure(median([then[0] for then, _ in pairs])),
        _figure(median([now[0] for _, now in pairs])),
        ratio(median(ratios), 1.0),
        ratio(quarters[0], 1.0),
        ratio(quarters[2], 1.0),
        ratio(median(cpu), 1.0),
    )


def run(
    server: sa.URL, *, quick: bool, before: str = BEFORE, only: Sequence[str] = ()
) -> list[Table]:
    """Compare this tree with the revision ``before``, in all measures or some."""
    names, count = list(only or MEASURES), 1 if quick else 15
    with _exported(before) as folder:
        if folder is None:
            print(f"before: skipped, revision {before} is not here (git fetch --unshallow)")
            return []
        smoke = zip(*(_measure(tree, names, 0.01) for tree in (folder, _ROOT)), strict=True)
        if quick:
            rows = [_row(name, [pair]) for name, pair in zip(names, smoke, strict=True)]
        else:  # that has compiled both
            rows = [_row(name, _pairs(folder, name, count)) for name in names]
    return [
        Table(
            title=f"before: revision {before}, and this tree",
            columns=("", "before", "now", "ratio", "lower quarter", "upper quarter", "of CPU"),
            rows=rows,
            notes=(
                f"{count} pairs of processes, in turn; medians, and those of the pairs' ratios",
                "of CPU: the same by the processor's time, which a busy machine disturbs less",
                "on the memory store; target: a ratio of at most 1.15x",
            ),
        )
    ]


def _figure(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"
