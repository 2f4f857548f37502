"""Piles of messages, or of entries of a log, stored at once behind everybody's back, for tests."""

import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor, MemoryBackdoor
from conftest import Shared

from trio_sessions.stores.memory._row import LogLine, Message

__all__ = ["pile_up", "pile_up_log"]


def pile_up(shared: Shared, session_id: str, number: int) -> None:
    """Store so many messages for a session."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        now = trio.current_time()
        row = shared.backdoor._store._rows[session_id]
        row.messages = {-n: Message(payload="0", stored_at=now) for n in range(number, 0, -1)}
    else:
        _insert(shared, "trio_messages (session_id, payload)", session_id, number)


def pile_up_log(shared: Shared, session_id: str, number: int) -> None:
    """Store so many entries in a session's log."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        now = trio.current_time()
        row = shared.backdoor._store._rows[session_id]
        row.log = {-n: LogLine(event="0", stored_at=now) for n in range(number, 0, -1)}
    else:
        _insert(shared, "trio_logs (session_id, event)", session_id, number)


def _insert(shared: Shared, columns: str, session_id: str, number: int) -> None:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    numbers = (
        f"generate_series(1, {number})"
        if shared.name == "postgresql"
        else f"(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number})"
        " SELECT i FROM n)"
    )
    values = f"SELECT '{session_id}', '0' FROM {numbers} AS one"
    shared.backdoor.execute(sa.text(f"INSERT INTO {columns} {values}"))
