"""How long a pass over very many sessions holds the event loop at a stretch."""

import tempfile
import time
from pathlib import Path

import sqlalchemy as sa
import trio

from benchmarks._database import postgresql_schema
from benchmarks._stalls import Stalls, watch_loop
from benchmarks._tables import Table, ms
from benchmarks._workers import hold_unconfirmed
from trio_sessions import SessionStore
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore

__all__ = ["run"]

_PASSES = 5


async def _measure(store: SessionStore, sessions: int) -> dict[str, tuple[float, Stalls]]:
    """Return the seconds and the stalls of a pass that writes, of steady passes, of closing."""
    measured: dict[str, tuple[float, Stalls]] = {}
    async with hold_unconfirmed(store, sessions) as registry:
        with watch_loop() as stalls:
            report = await registry.cleanup()
        assert len(report.restored) == sessions
        measured["writes all rows"] = report.duration, stalls
        with watch_loop() as stalls:
            for _ in range(_PASSES):
                report = await registry.cleanup()
                assert report.refreshed == sessions
        measured["steady"] = report.duration, stalls
        start = time.perf_counter()
        closing = watch_loop()
        stalls = closing.__enter__()
    closing.__exit__(None, None, None)
    measured["closing"] = time.perf_counter() - start, stalls
    return measured


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    sessions = 50 if quick else 50_000
    rows = []
    with postgresql_schema(server) as url, tempfile.TemporaryDirectory() as folder:
        for name, store in (
            ("memory", MemoryStore()),
            ("SQLite", DatabaseStore(f"sqlite:///{Path(folder) / 'sessions.db'}")),
            ("PostgreSQL", DatabaseStore(url)),
        ):
            for what, (seconds, stalls) in trio.run(_measure, store, sessions).items():
                rows.append(
                    (
                        f"{name}, {what}",
                        f"{seconds:.2f} s",
                        ms(stalls.cpu),
                        ms(stalls.wall),
                        ms(stalls.collection),
                        stalls.cpu_task.rpartition(".")[2],
                    )
                )
    return [
        Table(
            title=f"loop: the longest that {sessions:,} sessions hold the event loop",
            columns=("", "took", "our CPU", "wall", "GC", "task of our CPU"),
            rows=rows,
            notes=(
                "the longest single step of any task; GC: the longest garbage collection,",
                "which is in none of the other figures; wall: with waits for the interpreter's",
                f"lock and for a processor; steady: the longest of {_PASSES} passes",
                "target: our CPU at most 20 ms",
            ),
        )
    ]
