"""``workers``, ``list`` and ``show``: what operators ask of a database that gateways share.

They only read: no table is made, no row is written, and no worker notices. Who sweeps or
revokes may write.
"""

import enum
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trio_sessions.abc import Worker
from trio_sessions.cli._read_only import read_only
from trio_sessions.errors import StoreSchemaError
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo, WorkerState
from trio_sessions.revocation import Revocation, Revoked
from trio_sessions.stores.database import DatabaseStore, metadata
from trio_sessions.stores.database._urls import check_url, masked
from trio_sessions.stores.database.sqlite._files import path_of
from trio_sessions.types import Swept, fingerprint

__all__ = [
    "Access",
    "Visitor",
    "as_json",
    "count",
    "duration",
    "open_visitor",
    "printable",
    "session_facts",
    "show_session",
    "show_sessions",
    "show_workers",
    "state_text",
    "worker_facts",
]

T = TypeVar("T")

_STYLES = {
    WorkerState.ALIVE: "green",
    WorkerState.LATE: "yellow",
    WorkerState.GONE: "red",
    None: "dim",
}
_NARROW = 80  # columns
_LONG = {"session", "worker", "owner"}  # what may be so long that it must be folded
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


class Access(enum.Enum):
    """What a visitor may do."""

    READ = enum.auto()
    """An SQLite file is opened for reading only, so that none is made."""
    WRITE = enum.auto()


class Visitor:
    """Asks a database, and is none of its workers."""

    def __init__(self, store: DatabaseStore, worker: Worker) -> None:
        self._store = store
        self._worker = worker

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers that have a row."""
        return await self._store.list_workers(self._worker)

    async def sessions(self, selection: Selection, *, after: str, limit: int) -> list[SessionInfo]:
        """Return sessions by id."""
        return await self._store.list_sessions(self._worker, selection, after=after, limit=limit)

    async def session(self, session_id: str) -> SessionInfo | None:
        """Return what is known of a session."""
        return await self._store.describe(self._worker, session_id)

    async def ask(self, question: Callable[[sa.Connection, Worker], T]) -> T:
        """Ask for what the store itself has no question for."""
        return await self._store.run(
            self._worker, lambda connection: question(connection, self._worker)
        )

    async def revoke(self, revocation: Revocation, *, limit: int) -> Revoked:
        """Mark ids, and delete their rows; see `trio_sessions.abc.RevocationStore`."""
        return await self._store.revoke(self._worker, revocation, limit=limit)

    async def sweep(
        self, *, session_ttl: float, message_ttl: float, max_gap: float, limit: int
    ) -> Swept:
        """Delete a piece of what has expired; see `trio_sessions.abc.RowStore.sweep`."""
        return await self._store.sweep(
            self._worker,
            session_ttl=session_ttl,
            message_ttl=message_ttl,
            max_gap=max_gap,
            limit=limit,
        )


@asynccontextmanager
async def open_visitor(
    url: str, *, table_prefix: str, access: Access = Access.READ
) -> AsyncIterator[Visitor]:
    """Open a database that is there; nothing is created.

    Raises:
        FileNotFoundError: there is no such SQLite file.
        StoreUnavailable: it cannot be reached.
        StoreSchemaError: it has not our tables.
        ValueError: the URL or the prefix cannot be one.
    """
    metadata(table_prefix)  # is it one? Before anybody looks for a file
    if url == "memory:":
        raise ValueError("memory is nobody else's: give the URL of the database that workers share")
    checked = check_url(url)
    opened = _existing(checked, access)
    store = DatabaseStore(opened, table_prefix=table_prefix, create_tables=False, listen=False)
    worker = Worker(
        worker_id="trio-sessions",
        incarnation=secrets.token_hex(8),
        limiter=trio.CapacityLimiter(1),
    )
    try:
        await store.open(worker)
    except StoreSchemaError as exc:  # what it says to do, nobody can do with a URL for reading only
        said = str(exc).replace(masked(opened), masked(checked))
        raise StoreSchemaError(said) from exc
    try:
        yield Visitor(store, worker)
    finally:
        with trio.CancelScope(shield=True):
            await store.close(worker)


def _existing(url: sa.URL, access: Access) -> sa.URL:
    if url.get_backend_name() != "sqlite":
        return url
    path = path_of(url)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}: look at --database-url")
    return url if access is Access.WRITE else read_only(url)


# ---- as JSON ----


def worker_facts(worker: WorkerInfo) -> dict[str, Any]:
    """Return what JSON says of a worker."""
    return asdict(worker)


def session_facts(session: SessionInfo, *, full_ids: bool) -> dict[str, Any]:
    """Return what JSON says of a session; its id is a credential, and said only if asked for."""
    facts = asdict(session)
    session_id = facts.pop("session_id")
    name = {"session_id": session_id} if full_ids else {"session": fingerprint(session_id)}
    return {**name, "worker_alive": session.worker_alive, **facts}


def as_json(facts: object) -> str:
    """Return facts as JSON, with moments in ISO 8601."""
    return json.dumps(facts, indent=2, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"JSON cannot carry a {type(value).__name__}")


# ---- for people ----


def show_workers(console: Console, workers: Sequence[WorkerInfo]) -> None:
    """Print a table of workers."""
    rows = [
        (
            printable(one.worker_id),
            state_text(one.state, ", draining" if one.draining else ""),
            printable(one.sessions),
            printable(f"{duration(one.silence)} ago"),
            printable(duration(one.session_ttl)),
            printable(one.version),
        )
        for one in workers
    ]
    _print(console, ("worker", "state", "sessions", "stamped", "ttl", "version"), rows)
    console.print(count(len(workers), "worker"))


def show_sessions(
    console: Console, sessions: Sequence[SessionInfo], *, full_ids: bool, limit: int
) -> None:
    """Print a table of sessions; a page that is full says that others may follow."""
    rows = [
        (
            printable(one.session_id if full_ids else fingerprint(one.session_id)),
            printable(one.worker_id),
            state_text(one.worker_state),
            printable(one.owner or ""),
            printable(duration(one.age)),
            printable(one.waiting),
            printable(f"{duration(one.idle)} ago"),
        )
        for one in sessions
    ]
    heads = ("session", "worker", "state", "owner", "age", "waiting", "refreshed")
    fit = 6 if console.width < _NARROW else 7  # `show` and --json say the rest
    _print(console, heads[:fit], [row[:fit] for row in rows])
    more = ", there may be more: see --limit and --after" if len(sessions) == limit else ""
    console.print(count(len(sessions), "session") + more)


def show_session(console: Console, session: SessionInfo, *, full_ids: bool) -> None:
    """Print what is known of one session, a fact a line."""
    created = f"{session.created:%Y-%m-%d %H:%M:%S} UTC, {duration(session.age)} ago"
    for name, value in (
        ("session", printable(session.session_id if full_ids else fingerprint(session.session_id))),
        ("worker", printable(session.worker_id)),
        ("state", state_text(session.worker_state)),
        ("owner", printable(session.owner or "nobody")),
        ("created", printable(created)),
        ("refreshed", printable(f"{duration(session.idle)} ago")),
        ("waiting", printable(count(session.waiting, "message"))),
    ):
        console.print(Text(f"{name:<10} ") + value, soft_wrap=True)


def _print(console: Console, heads: Sequence[str], rows: Iterable[Sequence[Text]]) -> None:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head not in _LONG)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def printable(value: object) -> Text:
    """Return a value as it is: no markup, and nothing that a terminal would obey."""
    return Text(
        "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(value))
    )


def state_text(state: WorkerState | None, more: str = "") -> Text:
    """Return a worker's state in its colour."""
    return Text(("unknown" if state is None else state.value) + more, style=_STYLES[state])


def duration(seconds: float) -> str:
    """Return seconds in the unit that people would use."""
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
