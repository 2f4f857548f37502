"""What a test sees and does behind the registry's back: rows of the store, by hand."""

import copy
import dataclasses
from datetime import timedelta
from typing import Any, Protocol

import sqlalchemy as sa
import trio

from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.stores.memory._mail import Mail
from trio_sessions.stores.memory._row import Row
from trio_sessions.stores.memory._rows import Numbers, Rows
from trio_sessions.stores.memory._workers import Workers


class Backdoor(Protocol):
    """The same for every store. Sync, and quick."""

    def rows(self) -> dict[str, str]:
        """Return the worker_id of every session that has a row."""
        ...

    def owners(self) -> dict[str, str | None]: ...

    def delete(self, *session_ids: str) -> None: ...

    def insert(self, session_id: str, worker_id: str, *, age: float = 0.0) -> None:
        """Write a row of a worker that is not there, refreshed ``age`` seconds ago."""
        ...

    def age(self, seconds: float, *session_ids: str) -> None:
        """Make rows (all, if none is named) look as if refreshed so much earlier."""
        ...

    def age_fleet(self, seconds: float) -> None:
        """Make the fleet's last vouching look so much earlier."""
        ...

    def set_owner(self, session_id: str, owner: str) -> None: ...

    def give(self, session_id: str, worker_id: str) -> None:
        """Let another worker hold the row."""
        ...

    def messages(self) -> list[str]:
        """Return the session ids of all messages that are stored, in their order."""
        ...

    def age_messages(self, seconds: float) -> None:
        """Make messages look so much older."""
        ...

    def workers(self) -> dict[str, int]:
        """Return the beat of each worker_id that has a row; of the highest, if there are two."""
        ...

    def age_workers(self, seconds: float, *worker_ids: str) -> None:
        """Make the stamps and passes of workers (all, if none is named) look so much older."""
        ...

    def forget_workers(self) -> None:
        """Delete the rows of all workers."""
        ...

    def copy(self) -> Any:
        """Return all that is stored."""
        ...

    def go_back(self, copy: Any) -> None:
        """Let what is stored be as it was; None: nothing is."""
        ...

    def number_messages_anew(self) -> None:
        """Let ids of messages begin at the largest that is stored, as in an older copy."""
        ...

    def insert_late(self, session_id: str, like: str) -> None:
        """Write a row of the incarnation that holds another one, as a late statement does."""
        ...


class MemoryBackdoor:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def rows(self) -> dict[str, str]:
        return {session_id: row.worker_id for session_id, row in self._store._rows.items()}

    def owners(self) -> dict[str, str | None]:
        return {session_id: row.owner for session_id, row in self._store._rows.items()}

    def delete(self, *session_ids: str) -> None:
        for session_id in session_ids:
            self._store._rows.take(session_id)

    def insert(self, session_id: str, worker_id: str, *, age: float = 0.0) -> None:
        then = trio.current_time() - age
        self._store._rows[session_id] = Row(
            worker_id=worker_id, created_at=then, taken_at=then, last_accessed=then
        )

    def age(self, seconds: float, *session_ids: str) -> None:
        for session_id in session_ids or list(self._store._rows):
            self._store._rows[session_id].last_accessed -= seconds

    def age_fleet(self, seconds: float) -> None:
        workers = self._store._workers
        assert workers._vouched_at is not None
        workers._vouched_at -= seconds

    def set_owner(self, session_id: str, owner: str) -> None:
        self._store._rows.give(session_id, owner)

    def give(self, session_id: str, worker_id: str) -> None:
        self._store._rows[session_id].worker_id = worker_id

    def messages(self) -> list[str]:
        stored = {m: s for s, row in self._store._rows.items() for m in row.messages}
        return [stored[message_id] for message_id in sorted(stored)]

    def age_messages(self, seconds: float) -> None:
        for row in self._store._rows.values():
            for message in row.messages.values():
                message.stored_at -= seconds

    def workers(self) -> dict[str, int]:
        rows = self._store._workers._rows.values()
        return dict(sorted((row.worker_id, row.stamp.beat) for row in rows))

    def age_workers(self, seconds: float, *worker_ids: str) -> None:
        for row in self._store._workers._rows.values():
            if not worker_ids or row.worker_id in worker_ids:
                row.stamped_at -= seconds
                row.passed_at -= seconds

    def forget_workers(self) -> None:
        self._store._workers._rows.clear()

    def amounts(self) -> tuple[int, int, int, int]:
        """Return how many sessions, messages, entries of logs and letters are stored."""
        rows = list(self._store._rows.values())
        return (
            len(rows),
            sum(len(row.messages) for row in rows),
            sum(len(row.log) for row in rows),
            sum(len(letters) for letters in self._store._mail._letters.values()),
        )

    def copy(self) -> Any:
        return copy.deepcopy((self._store._rows, self._store._workers, self._store._mail))

    def go_back(self, copy: Any) -> None:
        if copy is None:
            copy = Rows(), Workers(), Mail()
        self._store._rows, self._store._workers, self._store._mail = copy

    def number_messages_anew(self) -> None:
        rows = self._store._rows
        rows._message_ids = Numbers(
            1 + max((m for r in rows.values() for m in r.messages), default=0)
        )

    def insert_late(self, session_id: str, like: str) -> None:
        self._store._rows[session_id] = dataclasses.replace(
            self._store._rows[like], messages={}, generation=1
        )


class DatabaseBackdoor:
    def __init__(self, url: sa.URL) -> None:
        # A server takes longer to connect than to answer. A file may be exchanged for another.
        pool: dict[str, Any] = {"pool_size": 1, "pool_pre_ping": True}
        if url.get_backend_name() == "sqlite":
            pool = {"poolclass": sa.NullPool}
        self.engine = sa.create_engine(url, **pool)
        ours = tables("trio_")
        self.sessions = ours.sessions
        self.messages_table = ours.messages
        self.fleet = ours.fleet
        self.workers_table = ours.workers

    def close(self) -> None:
        self.engine.dispose()

    def execute(self, statement: sa.Executable) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(statement)
            return list(result) if result.returns_rows else []

    def rows(self) -> dict[str, str]:
        row = self.sessions.c
        return {r[0]: r[1] for r in self.execute(sa.select(row.session_id, row.worker_id))}

    def owners(self) -> dict[str, str | None]:
        row = self.sessions.c
        return {r[0]: r[1] for r in self.execute(sa.select(row.session_id, row.owner))}

    def delete(self, *session_ids: str) -> None:
        self.execute(
            sa.delete(self.messages_table).where(self.messages_table.c.session_id.in_(session_ids))
        )
        self.execute(sa.delete(self.sessions).where(self.sessions.c.session_id.in_(session_ids)))

    def insert(self, session_id: str, worker_id: str, *, age: float = 0.0) -> None:
        self.execute(sa.insert(self.sessions).values(session_id=session_id, worker_id=worker_id))
        self.age(age, session_id)

    def age(self, seconds: float, *session_ids: str) -> None:
        row = self.sessions.c
        select = sa.select(row.session_id, row.last_accessed)
        for session_id, last_accessed in self.execute(select):
            if not session_ids or session_id in session_ids:
                earlier = last_accessed - timedelta(seconds=seconds)
                self.execute(
                    sa.update(self.sessions)
                    .where(row.session_id == session_id)
                    .values(last_accessed=earlier)
                )

    def age_fleet(self, seconds: float) -> None:
        [(vouched_at,)] = self.execute(sa.select(self.fleet.c.vouched_at))
        self.execute(
            sa.update(self.fleet).values(vouched_at=vouched_at - timedelta(seconds=seconds))
        )

    def set_owner(self, session_id: str, owner: str) -> None:
        self.execute(
            sa.update(self.sessions)
            .where(self.sessions.c.session_id == session_id)
            .values(owner=owner)
        )

    def give(self, session_id: str, worker_id: str) -> None:
        self.execute(
            sa.update(self.sessions)
            .where(self.sessions.c.session_id == session_id)
            .values(worker_id=worker_id)
        )

    def messages(self) -> list[str]:
        message = self.messages_table.c
        return [r[0] for r in self.execute(sa.select(message.session_id).order_by(message.id))]

    def age_messages(self, seconds: float) -> None:
        message = self.messages_table.c
        for message_id, created_at in self.execute(sa.select(message.id, message.created_at)):
            self.execute(
                sa.update(self.messages_table)
                .where(message.id == message_id)
                .values(created_at=created_at - timedelta(seconds=seconds))
            )

    def workers(self) -> dict[str, int]:
        worker = self.workers_table.c
        found = self.execute(sa.select(worker.worker_id, worker.beat))
        return dict(sorted((worker_id, beat) for worker_id, beat in found))

    def age_workers(self, seconds: float, *worker_ids: str) -> None:
        worker = self.workers_table.c
        earlier = timedelta(seconds=seconds)
        for found in self.execute(sa.select(self.workers_table)):
            if not worker_ids or found.worker_id in worker_ids:
                self.execute(
                    sa.update(self.workers_table)
                    .where(worker.incarnation == found.incarnation)
                    .values(
                        stamped_at=found.stamped_at - earlier, passed_at=found.passed_at - earlier
                    )
                )

    def forget_workers(self) -> None:
        self.execute(sa.delete(self.workers_table))

    def copy(self) -> Any:
        return {
            table.name: [row._asdict() for row in self.execute(sa.select(table))]
            for table in self.sessions.metadata.sorted_tables
        }

    def go_back(self, copy: Any) -> None:
        tables = self.sessions.metadata.sorted_tables
        with self.engine.begin() as connection:
            for table in reversed(tables):
                connection.execute(sa.delete(table))
            for table in tables:
                if copy is not None and copy[table.name]:
                    connection.execute(sa.insert(table), copy[table.name])

    def number_messages_anew(self) -> None:
        [(largest,)] = self.execute(sa.select(sa.func.max(self.messages_table.c.id)))
        if self.engine.dialect.name == "sqlite":
            self.execute(sa.text(f"UPDATE sqlite_sequence SET seq = {largest or 0}"))
        else:
            self.execute(
                sa.text(f"SELECT setval('trio_messages_id_seq', {largest or 0} + 1, false)")
            )

    def insert_late(self, session_id: str, like: str) -> None:
        [row] = self.execute(sa.select(self.sessions).where(self.sessions.c.session_id == like))
        values = {**row._asdict(), "session_id": session_id, "generation": 1}
        self.execute(sa.insert(self.sessions).values(values))
