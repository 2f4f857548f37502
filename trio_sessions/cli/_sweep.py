"""The command ``sweep``: what has expired, and its end."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from trio_sessions._checks import seconds
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.cli._inspect import Access, Visitor, as_json, count, printable
from trio_sessions.cli._options import ask, asks_a_database, console
from trio_sessions.cli._overdue import Overdue, overdue
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import WorkerInfo, WorkerState
from trio_sessions.stores.database._schema import Tables, tables

__all__ = ["progress", "sweep"]

_PIECE = 1000  # rows; one transaction
_AT_ONCE = 1.0  # seconds; what takes longer is shown
_PATIENCE = 3600.0  # seconds
_NEVER = 10 * 365 * 86400.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swept:
    sessions: int
    messages: int


@click.command(short_help="Delete what dead workers have left.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted now, and delete nothing.")
@click.option(
    "--session-ttl",
    type=float,
    metavar="SECONDS",
    help="For rows of workers that have none themselves; by default the longest of any worker.",
)
@click.option(
    "--message-ttl",
    type=float,
    metavar="SECONDS",
    help="Delete messages that are older, too; by default only those of sessions that go.",
)
@asks_a_database
def sweep(
    database_url: str,
    table_prefix: str,
    *,
    dry_run: bool,
    session_ttl: float | None,
    message_ttl: float | None,
    plain: bool,
) -> int:
    """Delete the rows of dead workers now, as each living worker does after its passes.

    A row goes if the lease of its holder has run out, and it was not refreshed for as long. An
    outage of the database is no death: where no worker is alive nobody can tell the two apart, and
    nothing is deleted (exit code 1). With --dry-run nothing is written.

    \b
    Examples:
      trio-sessions sweep --dry-run
      trio-sessions sweep --message-ttl 600 --json
    """  # noqa: D301 -- click: do not wrap what follows
    try:
        for name, value in (("session_ttl", session_ttl), ("message_ttl", message_ttl)):
            if value is not None:
                seconds(name, value)
        ours = tables(table_prefix)
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from exc
    before, swept = ask(
        database_url,
        table_prefix,
        partial(
            _look if dry_run else _sweep,
            ours=ours,
            session_ttl=session_ttl,
            message_ttl=message_ttl or _NEVER,
        ),
        access=Access.READ if dry_run else Access.WRITE,
        patience=_PATIENCE,
    )
    if plain:
        click.echo(as_json(_facts(before, swept)))
    else:
        _show(console(), before, swept)
    return 0


async def _look(
    visitor: Visitor, *, ours: Tables, session_ttl: float | None, message_ttl: float
) -> tuple[Overdue, None]:
    """Return what would be deleted."""
    ttl = _session_ttl(await visitor.workers(), session_ttl)
    return await _overdue(visitor, ours, ttl, message_ttl), None


async def _sweep(
    visitor: Visitor, *, ours: Tables, session_ttl: float | None, message_ttl: float
) -> tuple[Overdue, _Swept]:
    """Delete it, piece by piece.

    Raises:
        StoreUnavailable: no worker is alive.
    """
    workers = await visitor.workers()
    if all(one.state is not WorkerState.ALIVE for one in workers):
        # A sweep vouches that workers can reach the database. Who does so in their place, while
        # they cannot, lets their sessions expire.
        raise StoreUnavailable(
            "no worker is alive, so nobody can tell dead workers from an outage, and nothing was "
            "deleted: start a worker, and it sweeps after their session_ttl"
        )
    ttl = _session_ttl(workers, session_ttl)
    before = await _overdue(visitor, ours, ttl, message_ttl)
    sessions = messages = 0
    more = True
    async with progress(before.sessions, Console(stderr=True)) as advance:
        while more:
            piece = await visitor.sweep(
                session_ttl=ttl, message_ttl=message_ttl, max_gap=ttl * MAX_GAP, limit=_PIECE
            )
            sessions, messages = sessions + piece.sessions, messages + piece.messages
            more = piece.more
            advance(piece.sessions)
    return before, _Swept(sessions=sessions, messages=messages)


def _session_ttl(workers: list[WorkerInfo], given: float | None) -> float:
    return given or max((one.session_ttl for one in workers), default=3600.0)


async def _overdue(
    visitor: Visitor, ours: Tables, session_ttl: float, message_ttl: float
) -> Overdue:
    return await visitor.ask(
        lambda connection, worker: overdue(
            connection, worker, ours, session_ttl=session_ttl, message_ttl=message_ttl
        )
    )


@contextlib.asynccontextmanager
async def progress(
    total: int, out: Console, what: str = "sweeping"
) -> AsyncIterator[Callable[[int], None]]:
    """Show a bar, if that is a terminal and it takes long enough to look at one."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=out, auto_refresh=False, transient=True)
    task = bar.add_task(what, total=total)

    async def show() -> None:
        await trio.sleep(_AT_ONCE)
        with _shown(bar):
            await trio.sleep_forever()

    def advance(number: int) -> None:
        bar.advance(task, number)
        bar.refresh()

    async with trio.open_nursery() as nursery:
        if out.is_terminal:
            nursery.start_soon(show)
        yield advance
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def _shown(bar: Progress) -> Iterator[None]:
    with bar:
        bar.refresh()
        yield


def _facts(before: Overdue, swept: _Swept | None) -> dict[str, Any]:
    done = swept or _Swept(sessions=before.sessions, messages=before.messages)
    return {
        "dry_run": swept is None,
        "sessions": done.sessions,
        "messages": done.messages,
        "holders": [asdict(one) for one in before.holders],
    }


def _show(out: Console, before: Overdue, swept: _Swept | None) -> None:
    if before.holders:
        table = Table(box=None, pad_edge=False)
        for head in ("worker", "incarnation", "expired"):
            table.add_column(head, overflow="fold")
        for one in before.holders:
            table.add_row(
                printable(one.worker_id), printable(one.incarnation), printable(one.sessions)
            )
        out.print(table)
    done = swept or _Swept(sessions=before.sessions, messages=before.messages)
    verb = "would be deleted; nothing was" if swept is None else "deleted"
    out.print(f"{count(done.sessions, 'session')} and {count(done.messages, 'message')} {verb}")
