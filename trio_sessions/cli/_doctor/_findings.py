"""What a look finds, and the case that it is about."""

import enum
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from trio_sessions.inspection import WorkerInfo
from trio_sessions.stores.database._schema import Tables

__all__ = [
    "Case",
    "Check",
    "Finding",
    "Level",
    "Listening",
    "Look",
    "Thresholds",
    "fail",
    "ok",
    "warn",
]


class Level(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works, and is slow, unsafe or not what was meant."""
    FAIL = "fail"
    """A registry does not open, or does not do what it promises."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look has found."""

    level: Level
    says: str
    todo: str = ""
    """What to do about it."""
    check: str = ""
    """Which check has found it."""


def ok(says: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, says)


def warn(says: str, todo: str) -> Finding:
    """Return a finding of something that is not as it should be."""
    return Finding(Level.WARN, says, todo)


def fail(says: str, todo: str) -> Finding:
    """Return a finding of something that does not work."""
    return Finding(Level.FAIL, says, todo)


class Listening(enum.Enum):
    """How workers learn of messages: ``DatabaseStore(listen=...)``."""

    LISTEN = enum.auto()
    POLL = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From where on something is worth a warning."""

    clock_offset: float = 2.0
    """Seconds between the clocks of host and database."""
    oldest_transaction: float = 300.0
    """Seconds."""
    notify_queue: float = 0.1
    """The share of PostgreSQL's queue of notifications that is in use."""
    hot_updates: float = 0.5
    """The least share of updates that touch no index."""
    updates: int = 1000
    """So many updates are worth a judgement."""
    log_bytes: int = 256 * 1024 * 1024
    """The size of SQLite's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of a database and its workers before and while one looks."""

    url: sa.URL
    tables: Tables
    max_concurrent: int = 20
    pool_size: int | None = None
    """Of an engine that is handed in; None: the store makes its own."""
    listening: Listening = Listening.LISTEN
    thresholds: Thresholds = field(default_factory=Thresholds)
    host_clock: Callable[[], float] = time.time
    there: frozenset[str] = frozenset()
    """The names of the tables that are there."""
    workers: Sequence[WorkerInfo] | None = None
    """None: they could not be read."""


Look = Callable[[sa.Connection, Case], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at."""

    name: str
    look: Look
    needs: tuple[str, ...] = ()
    """The tables without which there is nothing to see, as `Tables` names them."""
