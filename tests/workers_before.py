"""A worker of an earlier version of the schema: the statements that it sends, kept as text.

It does in short what a worker of that version does, so that one of this version can be tried
beside it. Nothing here is made from `trio_sessions`, or it would change with it.
"""

import secrets

import sqlalchemy as sa

__all__ = ["WorkerOfVersion0"]


class WorkerOfVersion0:
    """It knows the tables of version 0: neither revocations nor versions."""

    def __init__(self, engine: sa.Engine) -> None:
        self.worker_id = self.incarnation = f"old-{secrets.token_hex(4)}"
        self._engine = engine
        is_sqlite = engine.dialect.name == "sqlite"
        self._now = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if is_sqlite else "clock_timestamp()"

    def _run(self, statement: str, **values: str) -> list[str]:
        """Return the first column of what a statement answers with."""
        named = {"worker": self.worker_id, "me": self.incarnation, **values}
        text = sa.text(statement.replace("{now}", self._now.replace(":", r"\:")))
        used = {name: named[name] for name in text._bindparams}
        with self._engine.begin() as connection:
            result = connection.execute(text, used)
            return [row[0] for row in result] if result.returns_rows else []

    def begin(self) -> None:
        """Write the worker's row, and vouch for the fleet."""
        self._run(
            """INSERT INTO trio_workers (incarnation, worker_id, history, beat, stamped_at,
            passed_at, session_ttl, cleanup_interval, stamp_interval, started_at, version, data)
            VALUES (:me, :worker, :me, 1, {now}, {now}, 3600.0, 1800.0, 5.0, {now}, '', '{}')"""
        )
        self._run(
            """INSERT INTO trio_fleet (id, vouched_at, unbroken_since) VALUES (1, {now}, {now})
            ON CONFLICT (id) DO UPDATE SET vouched_at = {now}"""
        )

    def claim(self, session_id: str) -> None:
        """Write a session's row, or take it over."""
        self._run(
            """INSERT INTO trio_sessions AS s (session_id, worker_id, incarnation, generation,
            created_at, taken_at, last_accessed)
            VALUES (:id, :worker, :me, 1, {now}, {now}, {now})
            ON CONFLICT (session_id) DO UPDATE SET worker_id = :worker, incarnation = :me,
            generation = s.generation + 1, taken_at = {now}, last_accessed = {now}""",
            id=session_id,
        )

    def pass_(self) -> set[str]:
        """Refresh all rows, stamp the worker's and the fleet's, and return whose there are."""
        refreshed = self._run(
            """UPDATE trio_sessions SET last_accessed = {now} WHERE incarnation = :me
            RETURNING session_id"""
        )
        beat = self._run(
            """UPDATE trio_workers SET beat = beat + 1, stamped_at = {now}, passed_at = {now}
            WHERE incarnation = :me RETURNING beat"""
        )
        assert len(beat) == 1, "its lease was taken from it"
        self._run("UPDATE trio_fleet SET vouched_at = {now} WHERE id = 1")
        return set(refreshed)

    def send(self, session_id: str, payload: str) -> None:
        """Store a message."""
        self._run(
            "INSERT INTO trio_messages (session_id, payload) VALUES (:id, :payload)",
            id=session_id,
            payload=payload,
        )

    def receive(self, session_id: str) -> list[str]:
        """Return a session's messages, and delete them."""
        return self._run(
            "DELETE FROM trio_messages WHERE session_id = :id RETURNING payload", id=session_id
        )

    def leave(self) -> None:
        """Delete what is this worker's."""
        self._run("DELETE FROM trio_sessions WHERE incarnation = :me")
        self._run("DELETE FROM trio_workers WHERE incarnation = :me")
