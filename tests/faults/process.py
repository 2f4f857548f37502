"""A worker in a process of its own, that real signals reach: what it does, and who leads it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import trio
from unmeasured import unmeasured_environment

from trio_sessions import open_registry
from trio_sessions.testing import FakeTransport
from trio_sessions.transports import StreamTransport

__all__ = ["Worker", "state"]

_TESTS = Path(__file__).parent.parent
_ANSWERS_WITHIN = 60.0  # seconds, on a machine that is very busy


def state(pid: int) -> str:
    """Return the letter by which Linux tells what a process does; T: it stands still."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Worker:
    """Leads a worker from here.

    Attributes:
        lives: the sessions that are connected to it.
        lost: of these, whoever was disconnected.
    """

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.worker_id = ""
        self.lives: set[str] = set()
        self.lost: set[str] = set()
        self._process = process
        self._line = StreamTransport(trio.StapledStream(process.stdin, process.stdout))
        self._turn = trio.Lock()
        self._number = 0

    @classmethod
    @asynccontextmanager
    async def start(
        cls, url: sa.URL, session_ttl: float, interval: float, environment: Mapping[str, str]
    ) -> AsyncIterator["Worker"]:
        """Start a worker; it is killed at the end of the block."""
        path = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH", "")]))
        text = url.render_as_string(hide_password=False)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "faults.process", text, str(session_ttl), str(interval)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**unmeasured_environment(), "PYTHONPATH": path, **environment},
        )
        worker = cls(process)
        try:
            worker.worker_id = (await worker.status())["worker_id"]
            yield worker
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def status(self, **command: Any) -> dict[str, Any]:
        """Tell it to do something, and return what it says then."""
        with trio.fail_after(_ANSWERS_WITHIN):
            async with self._turn:
                await self._line.send(command)
                answer = await self._line.receive()
        assert isinstance(answer, dict)
        self.lost |= self.lives & set(answer["disconnected"])
        return answer

    async def add(self, number: int) -> None:
        """Let sessions come to it."""
        new = [f"{self.worker_id}-{self._number + one}" for one in range(number)]
        self._number += number
        await self.status(add=new)
        self.lives |= set(new)

    async def held(self) -> list[str]:
        """Return the sessions that it holds; none, if it has ended."""
        if not self.is_running:
            return []
        held = (await self.status())["held"]
        assert isinstance(held, list)
        return held

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def kill(self) -> set[str]:
        """Kill it; return the sessions that it had."""
        self._process.kill()
        await self._process.wait()
        return self.give_up()

    def give_up(self) -> set[str]:
        """Let its sessions live no more; return them."""
        had, self.lives = self.lives, set()
        return had

    async def pause(self) -> None:
        """Stop it, as a host that sleeps does; wait until it stands still."""
        os.kill(self._process.pid, signal.SIGSTOP)
        with trio.fail_after(_ANSWERS_WITHIN):
            while state(self._process.pid) != "T":
                await trio.sleep(0.01)

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self._process.pid, signal.SIGCONT)


_time, _time_ns = time.time, time.time_ns


def _set_clock(offset: float) -> None:
    """Let the host's clock be wrong by so many seconds, as this process sees it."""
    time.time = lambda: _time() + offset
    time.time_ns = lambda: _time_ns() + int(offset * 1e9)


async def _main(url: str, session_ttl: float, interval: float) -> None:
    transports: dict[str, FakeTransport] = {}
    line = StreamTransport(
        trio.StapledStream(trio.lowlevel.FdStream(os.dup(1)), trio.lowlevel.FdStream(os.dup(0)))
    )
    async with open_registry(url, session_ttl=session_ttl, cleanup_interval=interval) as registry:
        while True:
            command = await line.receive()
            assert isinstance(command, dict)
            if "clock" in command:
                _set_clock(command["clock"])
            async with trio.open_nursery() as nursery:
                for session_id in command.get("add", ()):
                    transport = transports[session_id] = FakeTransport()
                    nursery.start_soon(registry.add_session, session_id, transport)
            numbers = registry.statistics()
            await line.send(
                {
                    "worker_id": registry.worker_id,
                    "held": await registry.get_all_session_ids(),
                    "disconnected": [s for s, one in transports.items() if one.disconnects],
                    "passes": numbers.passes,
                    "rewinds": numbers.database_rewinds,
                    "clock": time.time(),
                }
            )


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
