"""LISTEN: PostgreSQL rings, on a connection that waits for nothing else.

NOTIFY is only the bell; the row of the message is the truth. What is rung for is one session, or
several. A bell that is lost costs time and no message: whoever opens a new one looks for all
that waits, and so does this one now and then.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
import trio

from trio_sessions.abc import Bell, Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores.database._bell import BellSource

__all__ = ["listen"]

_LOOK_ANYWAY = 60.0  # seconds


class _Listening:
    def __init__(self, source: BellSource, worker: Worker, connection: sa.Connection) -> None:
        self._source = source
        self._worker = worker
        self._connection = connection
        driver: Any = connection.connection.dbapi_connection
        self._pgconn: psycopg.pq.abc.PGconn = driver.pgconn

    async def wait(self) -> frozenset[str] | None:
        """Wait for bells; None after a time without one, if the connection still works."""
        try:
            with trio.move_on_after(_LOOK_ANYWAY):
                while (rung := self._rung()) == frozenset():
                    await trio.lowlevel.wait_readable(self._pgconn.socket)
                return rung
        except (psycopg.Error, OSError) as exc:
            raise StoreUnavailable(
                f"the connection that listens for messages broke: {type(exc).__name__}"
            ) from exc
        # A network may drop what was silent for long, and tell nobody.
        await self._source.run_on(self._worker, self._connection, _is_alive)
        return None

    def _rung(self) -> frozenset[str] | None:
        """Read what has arrived, without waiting; empty: nothing."""
        self._source.check_process()
        self._pgconn.consume_input()
        rung: set[str] = set()
        is_known = True
        while (notice := self._pgconn.notifies()) is not None:
            told = notice.extra.decode()
            is_known &= bool(told)
            rung |= _sessions(told)
        return frozenset(rung) if is_known else None


def _sessions(told: str) -> set[str]:
    """Return the sessions that a notification is about: one by its bare id, several as JSON.

    An id may look like JSON, so it is always in it itself. Mail is told of as several
    (`_posts.MAIL_TOLD`): one of them is `trio_sessions.abc._mail.MAIL`, and the other nobody's.
    """
    try:
        decoded = json.loads(told)
    except ValueError:
        return {told}
    return {told, *filter(_is_text, decoded)} if isinstance(decoded, list) else {told}


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_alive(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SELECT 1")


@asynccontextmanager
async def listen(source: BellSource, worker: Worker, channel: str) -> AsyncIterator[Bell]:
    """Ring for each NOTIFY on the worker's channel.

    Its name is of our own letters and digits: a prefix that was checked, and hexadecimals.
    """

    def prepare(connection: sa.Connection) -> None:
        both = f'SHOW transaction_read_only; LISTEN "{channel}"'  # in one round trip
        if connection.exec_driver_sql(both).scalar_one() != "off":
            raise StoreUnavailable("PostgreSQL: this server takes no writes, so nobody rings there")

    connection = await source.take(worker, prepare)
    try:
        yield _Listening(source, worker, connection)
    finally:
        with trio.CancelScope(shield=True):
            await source.give_back(worker, connection)
