"""The command ``top``: the workers, again and again, on one screen."""

import contextlib
import os
import signal
import termios
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import click
import sqlalchemy as sa
import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_sessions.cli._inspect import (
    count,
    duration,
    open_visitor,
    printable,
    state_text,
)
from trio_sessions.cli._options import console, names_a_database, run_asking
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import WorkerInfo, WorkerState

__all__ = ["top"]

_LEAST, _MOST = 0.2, 3600.0  # seconds between two looks
_STDIN = 0
_AROUND = 6  # lines above and below the rows
_WIDE = 90  # columns; from there on there is room for more

Look = Callable[[], Awaitable[Sequence[WorkerInfo]]]


@dataclass(frozen=True, slots=True)
class _Frame:
    """What one look has found."""

    workers: Sequence[WorkerInfo] = ()
    moment: float = 0.0
    """On Trio's clock."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Sessions more, or fewer, in a second, by incarnation."""
    trouble: str = ""
    """Why there is nothing newer."""

    def after(self, workers: Sequence[WorkerInfo], moment: float) -> "_Frame":
        """Return the next one; a worker that is new has no rate yet."""
        elapsed = moment - self.moment
        before = {one.incarnation: one.sessions for one in self.workers}
        rates = {
            one.incarnation: (one.sessions - before[one.incarnation]) / elapsed
            for one in workers
            if one.incarnation in before and elapsed > 0
        }
        return _Frame(workers, moment, rates)


@click.command(short_help="Watch the workers live.")
@click.option(
    "--interval",
    type=click.FloatRange(_LEAST, _MOST),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, print, and end.")
@names_a_database
def top(database_url: str, table_prefix: str, *, interval: float, once: bool) -> int:
    """Watch the workers: who lives, how many sessions each has, and where they come and go.

    Press q, or Ctrl-C, to end. Where the output is no terminal it looks once.

    \b
    Examples:
      trio-sessions top --database-url sqlite:///sessions.db
      trio-sessions top --interval 0.5
      trio-sessions top --once
    """  # noqa: D301 -- click: do not wrap what follows
    out = console()

    async def main() -> None:
        async with _open(database_url, table_prefix) as look:
            if once or not out.is_terminal:
                frame = _Frame().after(await look(), trio.current_time())
                out.print(_drawn(frame, width=out.width, most=len(frame.workers)))
            else:
                await _watch(out, look, interval)

    run_asking(main)
    return 0


@contextlib.asynccontextmanager
async def _open(url: str, table_prefix: str) -> AsyncIterator[Look]:
    """Return what looks once.

    A file is opened anew for each look: one that nobody has open is read as if it did not change.
    """

    async def anew() -> Sequence[WorkerInfo]:
        async with open_visitor(url, table_prefix=table_prefix) as visitor:
            return await visitor.workers()

    if url.partition(":")[0].startswith("sqlite"):
        yield anew
        return
    async with open_visitor(url, table_prefix=table_prefix) as visitor:
        yield visitor.workers


async def _watch(out: Console, look: Look, interval: float) -> None:
    """Look until somebody has had enough."""
    frame = _Frame().after(await look(), trio.current_time())  # before the screen is ours
    with _keys(_STDIN) as keys, _screen(out) as screen:
        async with trio.open_nursery() as nursery:
            await nursery.start(_until_signalled, nursery.cancel_scope)
            if keys is not None:
                nursery.start_soon(_until_q, keys, nursery.cancel_scope)
            while True:
                lines = 1 if out.width >= _WIDE else 2  # of a worker, whose name may be long
                most = max(1, (out.height - _AROUND) // lines)
                screen.update(_drawn(frame, width=out.width, most=most), refresh=True)
                await trio.sleep(interval)
                frame = await _next(frame, look)


async def _next(frame: _Frame, look: Look) -> _Frame:
    """Return what is found next; while the database is away, what was found last."""
    try:
        return frame.after(await look(), trio.current_time())
    except (StoreUnavailable, OSError, sa.exc.SQLAlchemyError) as exc:
        return _Frame(frame.workers, frame.moment, trouble=str(exc))


async def _until_signalled(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def _until_q(keys: int, scope: trio.CancelScope) -> None:
    while True:
        await trio.lowlevel.wait_readable(keys)
        pressed = os.read(keys, 64)
        if not pressed:
            return
        if b"q" in pressed.lower():
            scope.cancel()


@contextlib.contextmanager
def _keys(descriptor: int) -> Iterator[int | None]:
    """Get keys as they are pressed, and show none; None: there is no keyboard."""
    if not os.isatty(descriptor):
        yield None
        return
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _screen(out: Console) -> Iterator[Live]:
    """Take the whole screen, and give it back as it was."""
    with Live(console=out, screen=True, auto_refresh=False) as live:
        yield live


def _drawn(frame: _Frame, *, width: int, most: int) -> RenderableType:
    """Return what is shown.

    Args:
        frame: what was found.
        width: columns.
        most: so many workers at most; those with the most sessions.
    """
    states = [one.state for one in frame.workers]
    parts = [f"{states.count(state)} {state.value}" for state in WorkerState]
    head = (
        f"{count(len(states), 'worker')} ({', '.join(parts)}), "
        f"{count(sum(one.sessions for one in frame.workers), 'session')}"
        + (f", {sum(frame.rates.values()):+.1f}/s" if frame.rates else "")
    )
    table = Table(box=None, pad_edge=False)
    more = ("passed", "ttl", "version") if width >= _WIDE else ()
    for name in ("worker", "state", "sessions", "+/s", "stamped", *more):
        table.add_column(
            name,
            justify="right" if name in {"sessions", "+/s"} else "left",
            no_wrap=name != "worker",
            overflow="fold",
        )
    shown = sorted(frame.workers, key=lambda one: (-one.sessions, one.worker_id))[:most]
    for one in shown:
        table.add_row(*_row(one, frame.rates.get(one.incarnation))[: 5 + len(more)])
    lines: list[RenderableType] = [Text(head, style="bold"), table]
    if len(shown) < len(states):
        lines.append(Text(f"and {len(states) - len(shown)} more", style="dim"))
    if frame.trouble:
        lines.append(Text("no answer: ", style="bold red") + printable(frame.trouble))
    return Group(*lines)


def _row(one: WorkerInfo, rate: float | None) -> list[Text]:
    passed = one.silence + (one.last_stamp - one.last_pass).total_seconds()
    return [
        printable(one.worker_id),
        state_text(one.state, ", draining" if one.draining else ""),
        printable(one.sessions),
        printable("" if rate is None else f"{rate:+.1f}"),
        printable(f"{duration(one.silence)} ago"),
        printable(f"{duration(max(0.0, passed))} ago"),
        printable(duration(one.session_ttl)),
        printable(one.version),
    ]
