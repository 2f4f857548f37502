"""What `messages` compares: messages to another process, by the public surface alone.

A program of its own, run with two trees on ``PYTHONPATH`` in turn, so it must work with both:
it imports nothing of `benchmarks`. It starts itself once more, as the reader, which holds the
sessions; prints what was taken, and whose code that was.

A message is ``[sender, number, moment]``. The reader raises unless each sender's come in their
order, all of them and each once, and looks into the database whether none is left there. Its
clock is the sender's: both are that of the machine.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import sqlalchemy as sa
import trio

import trio_sessions
from trio_sessions import SessionRegistry, open_registry

__all__ = ["Taken"]

Taken = dict[str, float]
"""Seconds: ``each``, of all divided by their number; ``p50`` and ``p99`` of a message from its
send to its reader; ``sending`` and ``reading``, the processor's for each in either process."""

_SETTINGS: Any = {"session_ttl": 7200.0, "cleanup_interval": 3600.0}
_TIMEOUT = 120.0


class _Connection:
    """Answers at once."""

    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        pass


class _Received:
    """What has come from each sender: a first message each, which warms up, then the others."""

    def __init__(self, senders: int) -> None:
        self._next = [0] * senders
        self._cold = senders
        self.warmed = trio.Event()
        self.warmed_cpu = self.last = 0.0
        self.seconds: list[float] = []

    def note(self, message: Any) -> None:
        self.last = time.monotonic()
        sender, number, moment = message
        assert number == self._next[sender], f"{number} of {sender} instead of {self._next[sender]}"
        self._next[sender] += 1
        if number:
            self.seconds.append(self.last - moment)
            return
        self._cold -= 1
        if not self._cold:
            self.warmed_cpu = time.process_time()
            self.warmed.set()


# ---- the reader ----


async def _read(
    registry: SessionRegistry, session_id: str, received: _Received, count: int
) -> None:
    """Read so many messages; leaving acknowledges the last."""
    async with registry.open_inbox(session_id) as inbox:
        for _ in range(count):
            received.note(await anext(inbox))


def _say(line: object) -> None:
    print(json.dumps(line), flush=True)


def _messages_left(url: str) -> int:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        count: int = connection.scalar(sa.text("SELECT count(*) FROM trio_messages")) or 0
    return count


async def _hold(url: str, *, senders: int, sessions: int, each: int) -> None:
    """Hold the sessions and read; say when it is ready, when warm, and what was taken."""
    received = _Received(senders)
    async with open_registry(url, **_SETTINGS) as registry:
        for number in range(sessions):
            await registry.add_session(f"s{number}", _Connection())
        await registry.cleanup()
        async with trio.open_nursery() as nursery:
            for number in range(sessions):
                count = len(range(number, senders, sessions)) * (each + 1)
                nursery.start_soon(_read, registry, f"s{number}", received, count)
            _say("ready")
            await received.warmed.wait()
            _say("warm")
        cpu = time.process_time() - received.warmed_cpu
        # The last ones may be acknowledged a little later; the table rings nobody.
        while await trio.to_thread.run_sync(_messages_left, url):  # noqa: ASYNC110
            await trio.sleep(0.1)
    _say({"seconds": received.seconds, "last": received.last, "cpu": cpu})


# ---- the senders ----


async def _send(
    registry: SessionRegistry, session_id: str, sender: int, due: Iterable[float | None]
) -> None:
    """Send a message when each is due, in seconds from now; None: when the last has gone.

    Late is late: the seconds of such a message count from when it was due.
    """
    start = time.monotonic()
    for number, seconds in enumerate(due, 1):
        if seconds is None:
            moment = time.monotonic()
        else:
            moment = start + seconds
            await trio.sleep(max(0.0, moment - time.monotonic()))
        await registry.broadcast(session_id, [sender, number, moment])


@asynccontextmanager
async def _lines_of_reader(*arguments: str) -> AsyncIterator[AsyncIterator[Any]]:
    """Start the reader; yield what it says, line by line. A reader that fails is an error."""
    command = [sys.executable, "-P", __file__, "hold", *arguments]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE)
        )
        assert process.stdout is not None
        yield _json_lines(process.stdout)


async def _json_lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[Any]:
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)


async def _measure(
    url: str, *, senders: int, sessions: int, each: int, rate: float | None
) -> Taken:
    """Send by so many senders; with a rate, so many a second of all, one sender after the other."""
    reader = (
        *("--database", url, "--senders", str(senders)),
        *("--sessions", str(sessions), "--each", str(each)),
    )
    async with open_registry(url, **_SETTINGS) as registry, _lines_of_reader(*reader) as lines:
        assert await anext(lines) == "ready"
        async with trio.open_nursery() as nursery:
            for sender in range(senders):
                message = [sender, 0, time.monotonic()]
                nursery.start_soon(registry.broadcast, f"s{sender % sessions}", message)
        assert await anext(lines) == "warm"
        start, began = time.monotonic(), time.process_time()
        async with trio.open_nursery() as nursery:
            for sender in range(senders):
                numbers = range(sender, senders * each, senders)
                due = [None if rate is None else number / rate for number in numbers]
                nursery.start_soon(_send, registry, f"s{sender % sessions}", sender, due)
        cpu = time.process_time() - began
        read = await anext(lines)
    seconds, count = sorted(read["seconds"]), senders * each
    assert len(seconds) == count, f"{len(seconds)} messages instead of {count}"
    return {
        "each": (read["last"] - start) / count,
        "p50": seconds[count // 2],
        "p99": seconds[count * 99 // 100],
        "sending": cpu / count,
        "reading": read["cpu"] / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("send", "hold"))
    parser.add_argument("--database", required=True, metavar="URL")
    parser.add_argument("--senders", type=int, required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--each", type=int, required=True, help="messages of each sender")
    parser.add_argument("--rate", type=float, help="messages a second of all; else when they can")
    arguments = parser.parse_args()
    url, sizes = (
        arguments.database,
        {
            "senders": arguments.senders,
            "sessions": arguments.sessions,
            "each": arguments.each,
        },
    )

    async def send() -> None:
        with trio.fail_after(_TIMEOUT):
            taken = await _measure(url, **sizes, rate=arguments.rate)
        _say({"taken": taken, "code": trio_sessions.__file__})

    async def hold() -> None:
        with trio.fail_after(_TIMEOUT):
            await _hold(url, **sizes)

    trio.run(send if arguments.role == "send" else hold)


if __name__ == "__main__":
    main()
