"""Bells of a file: it is looked at, and read by one look only."""

from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from readers import reading

from trio_sessions import open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database._bell import _FileBell
from trio_sessions.stores.database._questions import Questions
from trio_sessions.stores.database._schema import tables
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def test_a_file_that_does_not_change_is_looked_at_and_not_read(sqlite_url: sa.URL) -> None:
    """No query on a table while nothing changes."""
    statements: Counter[str] = Counter()
    engine = sa.create_engine(sqlite_url)

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements[statement] += 1

    async with (
        open_registry(engine) as a,
        open_registry(sqlite_url) as b,
        reading(a, "s", "t") as reader,
    ):
        await b.broadcast("s", 1)
        await reader.until(1)
        await trio.sleep(1.0)  # acknowledged, and that change was looked at, too
        statements.clear()
        await trio.sleep(1.0)
        assert statements.pop("PRAGMA data_version") >= 3
        assert not statements
        await b.broadcast("t", 2)
        await reader.until(2)
        assert reader.received == {"s": [1], "t": [2]}
    engine.dispose()


def test_what_is_stored_between_two_reads_of_a_look_is_seen_by_the_next(sqlite: Shared) -> None:
    """The file may change after its version was read, and after the messages were."""
    backdoor = sqlite.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    backdoor.sessions.metadata.create_all(backdoor.engine)
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    questions = Questions(tables("trio_"))
    after_the_version, after_the_news = list[str](), list[str]()

    def store(session_ids: list[str]) -> None:
        while session_ids:
            one = {"session_id": session_ids.pop(), "payload": "0"}
            backdoor.execute(sa.insert(backdoor.messages_table).values(one))

    def news(connection: sa.Connection, seen: int) -> tuple[int, frozenset[str]]:
        store(after_the_version)
        return questions.news(connection, worker, seen)

    for session_id in "abc":
        row = {"session_id": session_id, "worker_id": "w", "incarnation": "i"}
        backdoor.execute(sa.insert(backdoor.sessions).values(row))
    source: Any = None  # only waiting needs one
    with backdoor.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")

        @sa.event.listens_for(connection, "after_cursor_execute")
        def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if "DISTINCT" in statement:
                store(after_the_news)

        bell = _FileBell(source, worker, connection, news)
        assert bell.look(connection) == frozenset()
        store(["a"])
        after_the_version.append("b")
        after_the_news.append("c")
        assert bell.look(connection) == {"a", "b"}
        assert bell.look(connection) == {"c"}
        assert bell.look(connection) == frozenset()


async def test_messages_are_read_while_somebody_writes(sqlite: Shared) -> None:
    """A reader needs no turn as a writer, which another process may keep for long."""
    backdoor = sqlite.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    async with sqlite.open() as a, sqlite.open() as b:
        await a.add_session("s", FakeTransport())
        await b.broadcast("s", 1)
        with backdoor.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            with trio.fail_after(40):
                async with a.open_inbox("s") as inbox:
                    assert await anext(inbox) == 1
            connection.exec_driver_sql("ROLLBACK")
        assert len(backdoor.messages()) == 1  # only now can it be acknowledged
