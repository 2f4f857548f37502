"""Every record of the package says of which worker it is: ``worker_id``."""

import ast
import asyncio
import contextvars
import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import trio_sessions
from trio_sessions import SessionRegistry, aio, open_registry
from trio_sessions._logging import get_logger, speaker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

OURS = Path(trio_sessions.__file__).parent
NO_LOGGERS = {"cli/_main.py", "cli/_bench.py", "testing"}
"""What listens to the loggers."""


def workers(caplog: pytest.LogCaptureFixture) -> set[str | None]:
    """Return whose records there are."""
    ours = [one for one in caplog.records if one.name.startswith("trio_sessions")]
    return {one.worker_id for one in ours}  # type: ignore[attr-defined]


def test_every_logger_of_the_package_names_the_worker() -> None:
    found = 0
    for path in OURS.rglob("*.py"):
        place = path.relative_to(OURS)
        if {place.parts[0], str(place), place.name} & {*NO_LOGGERS, "_logging.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            assert getattr(called, "attr", "") != "getLogger", f"{place} has a logger of its own"
            found += getattr(called, "id", "") == "get_logger"
    assert found > 40


async def lose_the_store(registry: SessionRegistry, store: FaultyStore) -> None:
    """Let a pass, a job and a call of this task fail."""
    await registry.add_session("s", FakeTransport())
    store.fail(Fault.FAILS)
    await registry.cleanup()
    await registry.remove_session("s")


async def test_each_task_of_a_registry_speaks_for_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two in one process, whichever task gives the work."""
    stores = [FaultyStore(MemoryStore()) for _ in range(2)]
    async with (
        open_registry(stores[0], worker_id="one") as one,
        open_registry(stores[1], worker_id="two") as two,
    ):
        for registry, store, worker_id in ((one, stores[0], "one"), (two, stores[1], "two")):
            caplog.clear()
            await lose_the_store(registry, store)
            await trio.sleep(10)
            assert len(caplog.records) > 2
            assert workers(caplog) == {worker_id}
            store.heal()
            await trio.sleep(100)


async def test_what_a_callers_task_logs_is_of_the_only_registry(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    logger = get_logger("trio_sessions.rows")
    assert speaker() is None
    async with open_registry(worker_id="one"):
        logger.warning("of one")
        async with open_registry(worker_id="two"):
            logger.warning("of nobody knows whom")
        logger.warning("of one again")
    logger.warning("after it")
    said = [one.worker_id for one in caplog.records]  # type: ignore[attr-defined]
    assert said == ["one", None, "one", None]


async def test_the_callers_context_stays_its_own() -> None:
    before = dict(contextvars.copy_context())
    async with open_registry(worker_id="one") as registry:
        await registry.add_session("s", FakeTransport())
        await registry.cleanup()
        assert dict(contextvars.copy_context()) == before


class Connection:
    """One of asyncio."""

    async def is_connected(self) -> bool:
        await asyncio.sleep(0)
        return True

    async def disconnect(self) -> None:
        await asyncio.sleep(0)


def test_a_registry_on_asyncio_speaks_for_its_worker(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = FaultyStore(MemoryStore())
        async with aio.SessionRegistry(store, worker_id="one") as registry:
            await registry.add_session("s", Connection())
            store.fail(Fault.FAILS)
            await registry.cleanup()
            await registry.remove_session("s")

    asyncio.run(main())
    assert len(caplog.records) > 2
    assert workers(caplog) == {"one"}


def test_a_formatter_may_show_it() -> None:
    formatter = logging.Formatter("%(worker_id)s %(name)s: %(message)s")
    record = logging.LogRecord("trio_sessions.rows", logging.INFO, "", 0, "it is", None, None)
    assert get_logger(record.name).filter(record)
    assert formatter.format(record) == "None trio_sessions.rows: it is"
