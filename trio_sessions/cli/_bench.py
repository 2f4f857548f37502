"""The command ``bench``: what a database of yours carries, on tables of its own."""

import logging
import math
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial

import click
import sqlalchemy as sa
import trio
from rich.console import Console
from rich.table import Table

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.abc import Worker
from trio_sessions.cli._database import check_database, drop_tables
from trio_sessions.cli._inspect import Access, as_json, count, open_visitor
from trio_sessions.cli._options import asks_a_database, console, run_asking
from trio_sessions.cli._sweep import progress
from trio_sessions.errors import StoreSchemaError
from trio_sessions.inspection import WorkerState
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._schema import tables

__all__ = ["bench"]

_MOST = 100_000  # sessions; each is a row, and some kilobytes here
_LONGEST = 600.0  # seconds
_AT_ONCE = 1000  # sessions that are added together
_QUESTIONS, _PASSES, _MESSAGES = 300, 3, 100
_FEW = 3  # messages, however little time there is
_PATIENCE = 10.0  # seconds for these
_SHARES = {"questions": 0.1, "crowd": 0.4, "passes": 0.3, "messages": 0.1}  # of the time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spread:
    """Seconds of something that was done again and again."""

    median: float
    upper: float
    """So many seconds or fewer for 95 of 100."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    database: str
    round_trip: _Spread
    question: _Spread
    added: int
    added_per_second: float
    whole_pass: _Spread
    refreshing: float
    message: _Spread | None


@click.command(short_help="Measure what your database carries, on tables of its own.")
@click.option(
    "--sessions",
    type=click.IntRange(1, _MOST),
    default=10_000,
    show_default=True,
    help="As many as one worker of yours will hold.",
)
@click.option(
    "--seconds",
    type=float,
    default=20.0,
    show_default=True,
    help=f"For the whole, about; at most {_LONGEST:g}. What does not fit is left out.",
)
@click.option(
    "--anyway", is_flag=True, help="Measure although workers are alive there, who will feel it."
)
@asks_a_database
def bench(
    database_url: str,
    table_prefix: str,
    *,
    sessions: int,
    seconds: float,
    anyway: bool,
    plain: bool,
) -> int:
    """Measure what matters for sizing, from this host, on a database of yours.

    A round trip; sessions added at once, as after a restart; a pass over all of them; a message
    from one worker to another. It makes tables of its own, trio_bench_..., loads the database for
    so many seconds, and drops them. Where workers of --table-prefix are alive it refuses.

    \b
    Examples:
      trio-sessions bench --sessions 20000
      trio-sessions bench --seconds 60 --json
    """  # noqa: D301 -- click: do not wrap what follows
    if not 1.0 <= seconds <= _LONGEST:
        raise click.UsageError(f"--seconds must be 1 to {_LONGEST:g}, not {seconds:g}")
    try:
        tables(table_prefix)
        url = check_database(database_url)
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from exc
    logging.getLogger("trio_sessions").addHandler(logging.NullHandler())  # errors are told below
    found: list[_Found] = []

    async def main() -> None:
        if not anyway:
            await _refuse_where_workers_live(database_url, table_prefix)
        with trio.move_on_after(3 * seconds + 60):
            found.append(await _measure(url, sessions, seconds))

    run_asking(main)
    if not found:
        raise click.ClickException("the database is too slow to be measured")
    if plain:
        click.echo(as_json(asdict(found[0])))
    else:
        _show(console(), found[0], sessions)
    return 0


async def _refuse_where_workers_live(url: str, prefix: str) -> None:
    try:
        # An empty file of SQLite cannot be opened for reading only; this command writes anyway.
        async with open_visitor(url, table_prefix=prefix, access=Access.WRITE) as visitor:
            alive = [one for one in await visitor.workers() if one.state is WorkerState.ALIVE]
    except (StoreSchemaError, FileNotFoundError):
        return  # nobody uses it
    if alive:
        raise click.ClickException(
            f"{count(len(alive), 'worker')} {'is' if len(alive) == 1 else 'are'} alive on this "
            "database, and would feel the load: measure on another one like it, or say --anyway"
        )


async def _measure(url: sa.URL, sessions: int, seconds: float) -> _Found:
    prefix = f"trio_bench_{secrets.token_hex(3)}_"
    budget = {what: share * seconds for what, share in _SHARES.items()}
    out = Console(stderr=True)
    async with _two_workers(url, prefix) as (store, holder, sender):
        worker = Worker(
            worker_id="bench", incarnation=secrets.token_hex(8), limiter=trio.CapacityLimiter(1)
        )
        async with progress(2 * _QUESTIONS, out, "asking") as advance:
            select = partial(store.run, worker, _select)
            round_trip = await _again(select, _QUESTIONS, budget["questions"], advance)
            ask = partial(sender.locate_session, "nobody's")
            question = await _again(ask, _QUESTIONS, budget["questions"], advance)
        async with progress(sessions, out, "adding sessions") as advance:
            added, took = await _add(holder, sessions, budget["crowd"], advance)
        if not added or not round_trip or not question:
            raise click.ClickException(
                f"not one session was added within {budget['crowd']:g} s: give it more --seconds"
            )
        refreshing = list[float]()
        clean_up = partial(_pass, holder, refreshing)
        async with progress(_PASSES, out, "passes") as advance:
            whole = await _again(clean_up, _PASSES, budget["passes"], advance, at_least=1)
        assert whole is not None
        async with progress(_MESSAGES, out, "messages") as advance:
            message = await _send(holder, sender, budget["messages"], advance)
    return _Found(
        database=url.get_backend_name(),
        round_trip=round_trip,
        question=question,
        added=added,
        added_per_second=added / took,
        whole_pass=whole,
        refreshing=statistics.median(refreshing),
        message=message,
    )


@asynccontextmanager
async def _two_workers(
    url: sa.URL, prefix: str
) -> AsyncIterator[tuple[DatabaseStore, SessionRegistry, SessionRegistry]]:
    """Make the tables and open two registries on them; drop the tables whatever happens."""
    stores = [DatabaseStore(url, table_prefix=prefix) for _ in range(2)]
    hour = 3600.0
    opening = partial(open_registry, session_ttl=2 * hour, cleanup_interval=hour)
    try:
        async with opening(stores[0]) as holder, opening(stores[1]) as sender:
            yield stores[1], holder, sender
    finally:
        with trio.CancelScope(shield=True):
            await drop_tables(url, prefix)


class _Connection:
    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        pass


def _select(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SELECT 1").all()


async def _again(
    call: Callable[[], Awaitable[object]],
    times: int,
    budget: float,
    advance: Callable[[int], None],
    *,
    at_least: int = 2,
) -> _Spread | None:
    """Call again and again, but for the first time; None: there was not enough time."""
    taken = list[float]()
    until = time.perf_counter() + budget
    if at_least > 1:
        await call()  # it may connect
    while len(taken) < times and (len(taken) < at_least or time.perf_counter() < until):
        start = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - start)
        advance(1)
    return _spread(taken)


def _spread(taken: list[float]) -> _Spread | None:
    if not taken:
        return None
    taken.sort()
    upper = taken[math.ceil(0.95 * len(taken)) - 1]
    return _Spread(median=statistics.median(taken), upper=upper, count=len(taken))


async def _add(
    registry: SessionRegistry, sessions: int, budget: float, advance: Callable[[int], None]
) -> tuple[int, float]:
    """Add sessions, many at once; return how many were, and the seconds."""
    added = 0

    async def add(number: int) -> None:
        nonlocal added
        await registry.add_session(f"s{number}", _Connection())
        added += 1

    start = time.perf_counter()
    with trio.move_on_after(budget):
        for first in range(0, sessions, _AT_ONCE):
            before = added
            async with trio.open_nursery() as nursery:
                for number in range(first, min(first + _AT_ONCE, sessions)):
                    nursery.start_soon(add, number)
            advance(added - before)  # not for each of them: to draw takes time, too
    took = time.perf_counter() - start
    if registry.statistics().write_failures:
        raise click.ClickException(
            "the database did not take all sessions: see trio-sessions doctor"
        )
    return added, took


async def _pass(registry: SessionRegistry, refreshing: list[float]) -> None:
    report = await registry.cleanup()
    if report.refresh_failures:
        raise click.ClickException(
            "the database did not confirm all rows: see trio-sessions doctor"
        )
    refreshing.append(report.refreshing)


async def _send(
    holder: SessionRegistry, sender: SessionRegistry, budget: float, advance: Callable[[int], None]
) -> _Spread | None:
    """Send messages from one worker to a session of the other, one after the other."""
    session_id = (await holder.get_all_session_ids())[0]
    taken = list[float]()
    until = time.perf_counter() + budget
    with trio.move_on_after(budget + _PATIENCE):
        async with holder.open_inbox(session_id) as inbox:
            await sender.broadcast(session_id, "the first one, for it may have to connect")
            await anext(inbox)
            while len(taken) < _MESSAGES and (len(taken) < _FEW or time.perf_counter() < until):
                start = time.perf_counter()
                await sender.broadcast(session_id, len(taken))
                await anext(inbox)
                taken.append(time.perf_counter() - start)
                advance(1)
    return _spread(taken)


def _show(out: Console, found: _Found, sessions: int) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("what", overflow="fold")
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("times", justify="right", no_wrap=True)
    for what, one in (
        ("round trip", found.round_trip),
        ("question of a worker", found.question),
        (f"pass over {found.added:,} sessions", found.whole_pass),
        ("message to another worker", found.message),
    ):
        if one is None:
            table.add_row(what, "-", "-", "0")
        else:
            table.add_row(what, _ms(one.median), _ms(one.upper), f"{one.count:,}")
    out.print(table)
    out.print(f"{found.added:,} sessions added at once: {found.added_per_second:,.0f} a second")
    if found.added < sessions:
        out.print(f"{sessions:,} did not fit: give it more --seconds")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
