"""How long a message takes from one worker to a session of another."""

import tempfile
import time
from pathlib import Path

import sqlalchemy as sa
import trio

from benchmarks._database import postgresql_schema
from benchmarks._tables import Table, median, ms, ratio
from trio_sessions import SessionStore, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

__all__ = ["run"]

_LISTEN = "PostgreSQL, LISTEN"


async def _measure(here: SessionStore, there: SessionStore, messages: int) -> list[float]:
    """Return the seconds of each message; the first has made the connections."""
    seconds = []
    async with open_registry(here) as holder, open_registry(there) as sender:
        await holder.add_session("s", FakeTransport())
        async with holder.open_inbox("s") as inbox:
            for number in range(messages + 1):
                await trio.sleep(0.013 * (number % 11))  # anywhere between two looks
                start = time.perf_counter()
                await sender.broadcast("s", number)
                received: object = await anext(inbox)
                seconds.append(time.perf_counter() - start)
                assert received == number
    return seconds[1:]


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    messages = 3 if quick else 100
    with postgresql_schema(server) as url, tempfile.TemporaryDirectory() as folder:
        file = f"sqlite:///{Path(folder) / 'sessions.db'}"
        measured = {
            name: trio.run(_measure, here, there, messages)
            for name, here, there in (
                (_LISTEN, DatabaseStore(url), DatabaseStore(url)),
                (
                    "PostgreSQL, listen=False",
                    DatabaseStore(url, listen=False),
                    DatabaseStore(url, listen=False),
                ),
                ("SQLite", DatabaseStore(file), DatabaseStore(file)),
            )
        }
    reference = median(measured[_LISTEN])
    return [
        Table(
            title=f"delivery: {messages} messages to a session of another worker",
            columns=("", "median", "most", "to LISTEN"),
            rows=[
                (name, ms(median(taken)), ms(max(taken)), ratio(median(taken), reference))
                for name, taken in measured.items()
            ],
            notes=(
                "from the call of broadcast to the message in the inbox, one after the other",
                "target: median under 10 ms by LISTEN, under 250 ms on SQLite",
            ),
        )
    ]
