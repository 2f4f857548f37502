"""Looks at the logs of sessions, for tests."""

from typing import Any

import sqlalchemy as sa
from backdoors import DatabaseBackdoor, MemoryBackdoor
from conftest import Shared

from trio_sessions import (
    SessionRegistry,
)
from trio_sessions.stores.database import DatabaseStore


async def events(registry: SessionRegistry, session_id: str = "s") -> list[Any]:
    return [one.event for one in await registry.logs.read(session_id)]


def stored(shared: Shared) -> int:
    """Return how many entries there are, of all sessions, and of none."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        return sum(len(row.log) for row in shared.backdoor._store._rows.values())
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    [(number,)] = shared.backdoor.execute(sa.text("SELECT count(*) FROM trio_logs"))
    return int(number)


def explained(shared: Shared, store: DatabaseStore, statement: Any) -> str:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    values = {
        "asked_id": "s",
        "after": 5,
        "limit": 100,
        "size": 1000,
        "older_than": 600.0,
        "own_incarnation": "x",
    }
    with shared.backdoor.engine.begin() as connection:
        compiled = statement.compile(dialect=connection.dialect)
        found = {name: values.get(name, value) for name, value in compiled.params.items()}
        given: Any = found
        if compiled.positiontup is not None:
            given = tuple(found[name] for name in compiled.positiontup)
        explain = "EXPLAIN QUERY PLAN" if shared.name == "sqlite" else "EXPLAIN"
        rows = connection.exec_driver_sql(f"{explain} {compiled}", given)
        return "\n".join(str(row) for row in rows)
