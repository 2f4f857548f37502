"""Bells of a file: it is looked at, and read by one look only."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from readers import reading
from trio.testing import MockClock

from trio_sessions import open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database._bell import _FileBell, look_at_the_file
from trio_sessions.stores.database._questions import Questions
from trio_sessions.stores.database._schema import tables
from trio_sessions.testing import FakeTransport

T = TypeVar("T")

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


class Source:
    """The connections of a store that has one, and which counts the looks on it."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.looks = 0
        self.lent = 0

    def check_process(self) -> None:
        """Nothing is forked here."""

    async def run(self, worker: Worker, work: Callable[[sa.Connection], T]) -> T:
        raise AssertionError("a bell has a connection of its own")

    async def run_on(
        self, worker: Worker, connection: sa.Connection, work: Callable[[sa.Connection], T]
    ) -> T:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        assert self.looks < 1000, "it looks without a pause"
        return work(connection)

    async def take(self, worker: Worker, prepare: Callable[[sa.Connection], Any]) -> sa.Connection:
        prepare(self.connection)
        self.lent += 1
        return self.connection

    async def give_back(self, worker: Worker, connection: sa.Connection) -> None:
        assert connection is self.connection
        self.lent -= 1


async def test_what_was_there_before_a_bell_was_opened_is_no_news(
    autojump_clock: MockClock,
) -> None:
    """Whoever opens it looks for that anyway; and its connection is given back."""
    asked: list[int] = []

    def news(connection: sa.Connection, seen: int) -> tuple[int, frozenset[str]]:
        asked.append(seen)
        return 7, frozenset({"s"} if seen < 7 else ())

    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        source = Source(connection)
        async with look_at_the_file(source, worker, news) as bell:
            assert source.lent == 1
            with trio.move_on_after(10.0):
                pytest.fail(f"it rang for {await bell.wait()}")
        assert source.lent == 0
        assert source.looks > 100
    engine.dispose()
    assert asked == [0], "the tables are read when the file has changed"


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
