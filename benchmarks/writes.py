"""Sessions added and removed: against raw inserts, and against an earlier revision."""

import contextlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks._before import BEFORE, NOW, exported, in_turn, run_with
from benchmarks._database import NewDatabase, new_file, new_schema, syncing_server
from benchmarks._tables import Table, median, per_second, quarters, ratio, us
from benchmarks.write_measures import Taken

__all__ = ["run"]

_PROGRAM = Path(__file__).with_name("write_measures.py")

_AGAINST = ("", "before", "now", "to before", "lower quarter", "upper quarter")


def _measure(tree: Path, measure: str, new_database: NewDatabase, sessions: int) -> Taken:
    with new_database() as url:
        taken: dict[str, Any] = run_with(
            tree, _PROGRAM, measure, "--database", url, "--sessions", str(sessions)
        )
    return {name: (seconds, cpu) for name, (seconds, cpu) in taken.items()}


def _in_turn(
    before: Path, measure: str, new_database: NewDatabase, sessions: int, count: int
) -> list[tuple[Taken, Taken]]:
    def take(tree: Path) -> Taken:
        return _measure(tree, measure, new_database, sessions)

    return in_turn(take, before, count)


def _postgresql_crowd(
    before: Path, new_database: NewDatabase, *, sessions: int, rounds: int
) -> Table:
    def take(tree: Path) -> Taken:
        taken = _measure(tree, "crowd", new_database, sessions)
        raw = _measure(NOW, "raw", new_database, sessions) if tree == NOW else {}
        return taken | raw

    pairs = in_turn(take, before, rounds)
    raw = [now["insert"][0] for _, now in pairs]
    rows = []
    for name in pairs[0][0]:
        then, now = [p[name][0] for p, _ in pairs], [n[name][0] for _, n in pairs]
        rows.append(
            (
                name,
                per_second(median(raw)),
                per_second(median(then)),
                per_second(median(now)),
                ratio(median([one / two for one, two in zip(raw, now, strict=True)]), 1.0),
                ratio(median([one / two for one, two in zip(then, now, strict=True)]), 1.0),
            )
        )
    return Table(
        title=f"crowd: {sessions:,} sessions by 200 tasks at once, on PostgreSQL with fsync",
        columns=("", "raw inserts", "before", "now", "speed to raw", "speed to before"),
        rows=rows,
        notes=(
            f"{rounds} rounds of three processes; medians, and those of the rounds' ratios",
            "raw: such rows by psycopg, one a statement, each its own commit, by 20 threads",
            "target: at least 0.6 of raw, and 5 times before",
        ),
    )


def _sqlite_crowd(before: Path, new_database: NewDatabase, *, sessions: int, count: int) -> Table:
    pairs = _in_turn(before, "crowd", new_database, sessions, count)
    rows = []
    for name in pairs[0][0]:
        ratios = [then[name][0] / now[name][0] for then, now in pairs]
        rows.append(
            (
                name,
                per_second(median([then[name][0] for then, _ in pairs])),
                per_second(median([now[name][0] for _, now in pairs])),
                ratio(median(ratios), 1.0),
                *quarters(ratios),
            )
        )
    return Table(
        title=f"crowd_on_sqlite: {sessions:,} sessions by 200 tasks at once",
        columns=("", "before", "now", "speed to before", "lower quarter", "upper quarter"),
        rows=rows,
        notes=(f"{count} pairs of processes, in turn", "target: at least 10 times before"),
    )


def _alone(before: Path, new_database: NewDatabase, *, sessions: int, count: int) -> Table:
    pairs = _in_turn(before, "alone", new_database, sessions, count)
    rows = []
    for name in pairs[0][0]:
        ratios = [now[name][0] / then[name][0] for then, now in pairs]
        rows.append(
            (
                name,
                us(median([then[name][0] for then, _ in pairs])),
                us(median([now[name][0] for _, now in pairs])),
                ratio(median(ratios), 1.0),
                *quarters(ratios),
            )
        )
    return Table(
        title=f"alone: {sessions} sessions one after the other, on PostgreSQL with fsync",
        columns=_AGAINST,
        rows=rows,
        notes=(
            f"the median of the calls; {count} pairs of processes, in turn",
            "target: a ratio of at most 1.15",
        ),
    )


def _in_memory(before: Path, *, sessions: int, count: int) -> Table:
    pairs = _in_turn(before, "both", lambda: contextlib.nullcontext("memory:"), sessions, count)
    rows = []
    for name in pairs[0][0]:
        cells = [name]
        for clock in (0, 1):
            then, now = [p[name][clock] for p, _ in pairs], [n[name][clock] for _, n in pairs]
            ratios = [two / one for one, two in zip(then, now, strict=True)]
            cells += us(median(then)), us(median(now)), ratio(median(ratios), 1.0)
        rows.append(tuple(cells))
    return Table(
        title=f"in_memory: {sessions:,} sessions, on the memory store",
        columns=("", "before", "now", "ratio", "CPU before", "CPU now", "ratio of CPU"),
        rows=rows,
        notes=(
            f"one call; {count} pairs of processes, in turn; medians",
            "alone: the median of the calls by the clock; else the time of all, shared",
            "target: at most 50 µs to add, and 80 µs to remove",
        ),
    )


def _many(new_database: NewDatabase, *, sessions: int) -> Table:
    taken = _measure(NOW, "many", new_database, sessions)
    return Table(
        title=f"many: {sessions:,} sessions by 200 tasks, on PostgreSQL with fsync",
        columns=("", "seconds", "of CPU", "each"),
        rows=[
            (
                label,
                f"{taken[name][0]:.1f} s",
                f"{taken[name][1]:.1f} s",
                us(taken[name][0] / sessions),
            )
            for label, name in (("until all are added", "added"), ("the closing", "closed"))
        ],
        notes=("one run of this tree", "target: 100,000 added in at most 20 s"),
    )


def run(server: sa.URL, *, quick: bool, before: str = BEFORE) -> list[Table]:
    """Compare this tree with the revision ``before``; in a quick run without the disk."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(exported(before))
        if folder is None:
            print(f"writes: skipped, revision {before} is not here (git fetch --unshallow)")
            return []
        if not quick:
            server = stack.enter_context(syncing_server(server))
        schema = new_schema(server)
        if quick:
            return [
                _postgresql_crowd(folder, schema, sessions=20, rounds=1),
                _alone(folder, schema, sessions=5, count=1),
                _many(schema, sessions=200),
                _sqlite_crowd(folder, new_file, sessions=20, count=1),
                _in_memory(folder, sessions=20, count=1),
            ]
        return [
            _postgresql_crowd(folder, schema, sessions=2000, rounds=5),
            _alone(folder, schema, sessions=60, count=15),
            _many(schema, sessions=100_000),
            _sqlite_crowd(folder, new_file, sessions=500, count=3),
            _in_memory(folder, sessions=1000, count=9),
        ]
