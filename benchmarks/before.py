"""Today's tree against an earlier revision of it: the same program, in turn with either."""

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from benchmarks._before import BEFORE, NOW, exported, in_turn, run_with
from benchmarks._tables import Table, median, quarters, ratio, us
from benchmarks.measures import MEASURES, Taken

__all__ = ["run"]

Pair = tuple[Taken, Taken]
"""What the same measure took before, and takes now."""

_PROGRAM = Path(__file__).with_name("measures.py")


def _measure(tree: Path, names: Sequence[str], scale: float) -> list[Taken]:
    """Run the program with the package of one tree; return what each measure took."""
    taken = run_with(tree, _PROGRAM, *names, "--scale", str(scale))
    return [(seconds, cpu) for seconds, cpu in taken]


def _pairs(before: Path, name: str, count: int) -> list[Pair]:
    return in_turn(lambda tree: _measure(tree, [name], 1.0)[0], before, count)


def _row(name: str, pairs: list[Pair]) -> tuple[str, ...]:
    ratios = [now[0] / then[0] for then, now in pairs]
    cpu = [now[1] / then[1] for then, now in pairs]
    return (
        name,
        us(median([then[0] for then, _ in pairs])),
        us(median([now[0] for _, now in pairs])),
        ratio(median(ratios), 1.0),
        *quarters(ratios),
        ratio(median(cpu), 1.0),
    )


def run(
    server: sa.URL, *, quick: bool, before: str = BEFORE, only: Sequence[str] = ()
) -> list[Table]:
    """Compare this tree with the revision ``before``, in all measures or some."""
    names, count = list(only or MEASURES), 1 if quick else 15
    with exported(before) as folder:
        if folder is None:
            print(f"before: skipped, revision {before} is not here (git fetch --unshallow)")
            return []
        smoke = zip(*(_measure(tree, names, 0.01) for tree in (folder, NOW)), strict=True)
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
