"""Messages to a session of another process: how many, and how soon, against an earlier revision."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from benchmarks._before import BEFORE, NOW, exported, in_turn, run_with
from benchmarks._database import NewDatabase, new_file, new_schema, syncing_server
from benchmarks._tables import Table, median, ms, per_second, quarters, ratio, us
from benchmarks.message_measures import Taken

__all__ = ["run"]

_PROGRAM = Path(__file__).with_name("message_measures.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """Who sends what.

    Args:
        name: in the table.
        new_database: where.
        senders: tasks that send, one message after the other.
        sessions: among which they are divided.
        each: messages of each sender.
        count: how often it is measured.
        rate: messages a second of all; else when they can.
    """

    name: str
    new_database: NewDatabase
    senders: int
    sessions: int
    each: int
    count: int
    rate: float | None = None

    def measure(self, tree: Path) -> Taken:
        """Run it with the package of one tree."""
        sizes = ("--senders", self.senders, "--sessions", self.sessions, "--each", self.each)
        rate = () if self.rate is None else ("--rate", str(self.rate))
        with self.new_database() as url:
            taken: Taken = run_with(
                tree, _PROGRAM, "send", "--database", url, *map(str, sizes), *rate
            )
        return taken


def _column(pairs: Sequence[tuple[Taken, Taken]], tree: int, what: str) -> float:
    """Return a median of one tree: 0 is the one before, 1 this one."""
    return median([pair[tree][what] for pair in pairs])


def _crowd(before: Path, loads: Sequence[_Load]) -> Table:
    rows = []
    for load in loads:
        pairs = in_turn(load.measure, before, load.count)
        ratios = [then["each"] / now["each"] for then, now in pairs]
        rows.append(
            (
                load.name,
                per_second(_column(pairs, 0, "each")),
                per_second(_column(pairs, 1, "each")),
                ratio(median(ratios), 1.0),
                *quarters(ratios),
                ms(_column(pairs, 0, "p50")),
                ms(_column(pairs, 1, "p50")),
                us(_column(pairs, 1, "sending")),
                us(_column(pairs, 1, "reading")),
            )
        )
    return Table(
        title="messages: from 100 senders at once to sessions of another process",
        columns=(
            *("", "before", "now", "speed to before", "lower quarter", "upper quarter"),
            *("p50 before", "p50 now", "CPU sending", "CPU reading"),
        ),
        rows=rows,
        notes=(
            "PostgreSQL with fsync; each sender sends on when its last message has gone",
            "pairs of runs of two processes, in turn; medians, and those of the pairs' ratios",
            "CPU: of this tree, for each message, in either process, without the server's",
            "target: 4,000 a second and 5 times before on PostgreSQL, 3 times before on SQLite",
        ),
    )


def _one(before: Path, loads: Sequence[_Load]) -> Table:
    rows = []
    for load in loads:
        pairs = in_turn(load.measure, before, load.count)
        ratios = [now["p50"] / then["p50"] for then, now in pairs]
        rows.append(
            (
                load.name,
                ms(_column(pairs, 0, "p50")),
                ms(_column(pairs, 1, "p50")),
                ratio(median(ratios), 1.0),
                *quarters(ratios),
                ms(_column(pairs, 0, "p99")),
                ms(_column(pairs, 1, "p99")),
            )
        )
    return Table(
        title="messages_of_one: from one sender to a session of another process",
        columns=(
            *("", "p50 before", "p50 now", "ratio", "lower quarter", "upper quarter"),
            *("p99 before", "p99 now"),
        ),
        rows=rows,
        notes=(
            "from the call of broadcast to the reader, on PostgreSQL with fsync",
            f"{loads[0].count} pairs of runs, in turn; medians, and those of the pairs' ratios",
            "target: a ratio of at most 1.0",
        ),
    )


def _offered(loads: Sequence[_Load]) -> Table:
    rows = []
    for load in loads:
        taken = [load.measure(NOW) for _ in range(load.count)]
        p99 = [one["p99"] for one in taken]
        rows.append(
            (
                load.name,
                per_second(median([one["each"] for one in taken])),
                ms(median([one["p50"] for one in taken])),
                ms(median(p99)),
                ms(max(p99)),
            )
        )
    return Table(
        title="messages_offered: 1,000 a second by 100 senders, on PostgreSQL with fsync",
        columns=("", "read", "p50", "p99", "most of p99"),
        rows=rows,
        notes=(
            "from the moment when a message was due to its reader in another process",
            f"{loads[0].count} runs of this tree; target: p99 under 50 ms",
        ),
    )


def run(server: sa.URL, *, quick: bool, before: str = BEFORE) -> list[Table]:
    """Compare this tree with the revision ``before``; in a quick run without the disk."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(exported(before))
        if folder is None:
            print(f"messages: skipped, revision {before} is not here (git fetch --unshallow)")
            return []
        if not quick:
            server = stack.enter_context(syncing_server(server))
        return _tables(folder, new_schema(server), quick=quick)


def _tables(before: Path, schema: NewDatabase, *, quick: bool) -> list[Table]:
    if quick:
        tiny = _Load(
            name="PostgreSQL, one session",
            new_database=schema,
            senders=5,
            sessions=1,
            each=2,
            count=1,
        )
        file = _Load(
            name="SQLite, a session each",
            new_database=new_file,
            senders=5,
            sessions=5,
            each=2,
            count=1,
        )
        one = _Load(
            name="one after the other", new_database=schema, senders=1, sessions=1, each=5, count=1
        )
        return [_crowd(before, [tiny, file]), _one(before, [one]), _offered([_at(1000.0, tiny)])]
    shared = _Load(
        name="PostgreSQL, one session",
        new_database=schema,
        senders=100,
        sessions=1,
        each=30,
        count=3,
    )
    apart = replace(shared, name="PostgreSQL, a session each", sessions=100)
    file = replace(apart, name="SQLite, a session each", new_database=new_file, each=10)
    one = _Load(
        name="one after the other", new_database=schema, senders=1, sessions=1, each=100, count=9
    )
    lone = replace(_at(50.0, one), name="50 a second", each=60)
    return [
        _crowd(before, [shared, apart, file]),
        _one(before, [one, lone]),
        _offered([_at(1000.0, shared), _at(1000.0, apart)]),
    ]


def _at(rate: float, load: _Load) -> _Load:
    return replace(load, rate=rate)
