"""What operators are told of workers and sessions: values, and the words for a worker's state.

Nothing here does I/O. Moments are on the store's clock, in UTC; durations are seconds.
See docs/decisions/0012-operate.md.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trio_sessions._checks import a_name
from trio_sessions.types import check_owner

__all__ = [
    "MISSED",
    "Selection",
    "SessionInfo",
    "WorkerInfo",
    "WorkerState",
    "check_limit",
    "select",
    "state_of",
]

_MOST = 10_000  # sessions in one answer
_AGES = 1e11  # seconds: no session is older, and databases know no moment that is much earlier
MISSED = 3
"""Stamps that a worker may miss before it is late."""


class WorkerState(enum.StrEnum):
    """Whether a worker lives, as its stamps say.

    Attributes:
        ALIVE: it has stamped its row within three of its stamp intervals.
        LATE: it has not, and its lease goes on: it may be slow, cut off, paused or dead.
        GONE: its lease has run out: the next sweep takes its rows.
    """

    ALIVE = "alive"
    LATE = "late"
    GONE = "gone"


def state_of(*, silence: float, stamp_interval: float, has_lapsed: bool) -> WorkerState:
    """Return the state of a worker.

    Args:
        silence: seconds since its last stamp.
        stamp_interval: seconds between two of its stamps, at most.
        has_lapsed: a sweep may take its rows now (`trio_sessions.abc.RowStore.sweep`).
    """
    if has_lapsed:
        return WorkerState.GONE
    return WorkerState.LATE if silence > MISSED * stamp_interval else WorkerState.ALIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One opening of one registry, as the database knows it.

    Attributes:
        worker_id: its name; users may have chosen it, and two workers may have the same.
        incarnation: made fresh at each opening.
        state: whether it lives, as its stamps say.
        started: when its row was written first.
        last_stamp: when it last said that it lives.
        last_pass: when its last pass ended.
        silence: seconds since its last stamp.
        sessions: rows of sessions that it holds.
        session_ttl: seconds without a stamp after which its sessions may be swept.
        cleanup_interval: seconds between two of its passes.
        version: its version of trio_sessions.
        data: what it tells others of itself: ``worker_data`` of `trio_sessions.open_registry`.
        draining: it takes no new sessions, and will close (`SessionRegistry.drain`).
    """

    worker_id: str
    incarnation: str
    state: WorkerState
    started: datetime
    last_stamp: datetime
    last_pass: datetime
    silence: float
    sessions: int
    session_ttl: float
    cleanup_interval: float
    version: str
    data: Mapping[str, Any]
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """One session, as its row says.

    Attributes:
        session_id: the real one: a credential, not for logs.
        worker_id: who holds it.
        incarnation: which opening of that worker.
        worker_state: whether the holder lives; None: it has no row (a worker of an earlier version
            has none).
        owner: whose it is; None: nobody's.
        created: when the session was added first, by whatever worker.
        last_accessed: when its row was last refreshed.
        age: seconds since it was created.
        idle: seconds since it was refreshed: a pass of its holder does that, not its traffic.
        waiting: messages that are stored for it.
        data: what is stored with it, `trio_sessions.SessionRegistry.set_session_data`; None:
            nothing. Only `trio_sessions.SessionRegistry.describe_session` tells it: in a list of
            many it is None.
    """

    session_id: str
    worker_id: str
    incarnation: str
    worker_state: WorkerState | None
    owner: str | None
    created: datetime
    last_accessed: datetime
    age: float
    idle: float
    waiting: int
    data: Mapping[str, Any] | None = None

    @property
    def worker_alive(self) -> bool:
        """Whether the holder lives: it has missed no three stamps."""
        return self.worker_state is WorkerState.ALIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which sessions are meant: those of which everything that is said here is true.

    Attributes:
        owner: of this owner.
        worker_id: held by a worker of this name.
        older_than: created more than so many seconds ago.
    """

    owner: str | None = None
    worker_id: str | None = None
    older_than: float | None = None


def select(*, owner: object, worker_id: object, older_than: object) -> Selection:
    """Return which sessions are meant by these arguments, each of which may be None.

    Raises:
        TypeError, ValueError: one of them cannot be what it is to be; the message names it.
    """
    if older_than is not None:
        if isinstance(older_than, bool) or not isinstance(older_than, int | float):
            raise TypeError(
                f"older_than must be a number of seconds, not {type(older_than).__name__}"
            )
        if not 0 <= older_than < math.inf:
            raise ValueError(
                f"older_than must be a finite number of seconds, 0 or more, not {older_than!r}"
            )
        older_than = float(min(older_than, _AGES))
    return Selection(
        owner=None if owner is None else check_owner(owner),
        worker_id=None if worker_id is None else a_name("worker_id", worker_id),
        older_than=older_than,
    )


def check_limit(limit: object) -> int:
    """Return ``limit`` if it may be one.

    Raises:
        TypeError: it is no `int`.
        ValueError: it is not from 1 to 10,000.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {type(limit).__name__}")
    if not 1 <= limit <= _MOST:
        raise ValueError(f"limit must be from 1 to {_MOST}, not {limit}")
    return limit
