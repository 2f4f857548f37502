"""Why there is no index on last_accessed: what it would do to PostgreSQL's HOT updates."""

import contextlib

import sqlalchemy as sa
import trio

from benchmarks._database import connect_raw, postgresql_schema
from benchmarks._tables import Table, median, ms, ratio
from benchmarks._workers import TimedStore, hold_sessions

__all__ = ["run"]

_INDEX = "CREATE INDEX ON trio_sessions (last_accessed)"


class _Rival:
    """A worker in a schema of its own, with or without the index."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.store = TimedStore(url)
        self.seconds: list[float] = []
        self.shares: list[float] = []

    def vacuum(self) -> None:
        with connect_raw(self.url) as connection:
            connection.execute("VACUUM trio_sessions")

    def updates(self) -> tuple[int, int]:
        """Return all updates and the HOT ones, as the server has counted them so far."""
        with connect_raw(self.url) as connection:
            counted: tuple[int, int] = connection.execute(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
                "WHERE relid = 'trio_sessions'::regclass"
            ).fetchone()
        return counted

    def report_counts(self) -> None:
        """Let the server's side of every pooled connection report now, not when it falls idle."""
        engine = self.store._opened.state._engine
        assert engine is not None
        pool = engine.pool
        assert isinstance(pool, sa.QueuePool)
        with contextlib.ExitStack() as stack:
            for _ in range(pool.checkedin()):
                connection = stack.enter_context(engine.connect())
                connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")


async def _measure(rivals: list[_Rival], sessions: int, rounds: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        registries = [
            await stack.enter_async_context(hold_sessions(rival.store, sessions))
            for rival in rivals
        ]
        with connect_raw(rivals[1].url) as connection:
            connection.execute(_INDEX)
        for _ in range(rounds):
            for rival, registry in zip(rivals, registries, strict=True):
                rival.vacuum()
                rival.report_counts()
                before = rival.updates()
                refresh, _ = await rival.store.time_pass(registry)
                rival.seconds.append(refresh.seconds)
                rival.report_counts()
                after = rival.updates()
                assert after[0] - before[0] == sessions, "the server has not counted every update"
                rival.shares.append((after[1] - before[1]) / sessions)


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    sessions, rounds = (100, 2) if quick else (20_000, 12)
    with postgresql_schema(server) as without, postgresql_schema(server) as indexed:
        rivals = [_Rival(without), _Rival(indexed)]
        trio.run(_measure, rivals, sessions, rounds)
    half = rounds // 2  # in the first half the rows still settle into the room of their pages
    reference = median(rivals[0].seconds[half:])
    return [
        Table(
            title=f"hot_updates: {sessions:,} sessions, an index on last_accessed or none",
            columns=("", "HOT updates", "check and refresh", "ratio"),
            rows=[
                (
                    name,
                    f"{median(rival.shares[half:]):.0%}",
                    ms(median(rival.seconds[half:])),
                    ratio(median(rival.seconds[half:]), reference),
                )
                for name, rival in zip(("no index (ours)", "with an index"), rivals, strict=True)
            ],
            notes=(
                f"medians of the last {rounds - half} of {rounds} interleaved passes",
                "a VACUUM before each pass",
            ),
        )
    ]
