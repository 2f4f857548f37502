"""Openings of one empty database by several threads at once, as processes have them."""

import threading

import sqlalchemy as sa
import trio

from trio_sessions import open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

__all__ = ["open_at_once"]


def open_at_once(url: sa.URL, count: int = 8, *, migrate: bool = False) -> list[BaseException]:
    """Open, add and refresh in each thread, with a store of its own; return what failed."""
    errors: list[BaseException] = []
    together = threading.Barrier(count)

    async def open_and_add() -> None:
        async with open_registry(
            DatabaseStore(url, lock_timeout=60, operation_timeout=100, migrate=migrate),
            store_timeout=100,
        ) as registry:
            await registry.add_session(registry.worker_id, FakeTransport())
            assert (await registry.cleanup()).refreshed == 1

    def worker() -> None:
        try:
            together.wait(60)
            trio.run(open_and_add)
        except BaseException as exc:  # noqa: BLE001 -- the caller asserts on it
            errors.append(exc)

    threads = [threading.Thread(target=worker) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return errors
