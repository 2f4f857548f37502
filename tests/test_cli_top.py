"""`trio-sessions top`, in a terminal and without one."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO

import pytest
import sqlalchemy as sa
from conftest import Shared
from fleets import in_thread
from rich.console import Console
from soak import longer
from test_cli import MODULE, ROOT, clean_environment
from test_cli_operators import run, url_of

from trio_sessions import SessionRegistry, StoreUnavailable, WorkerInfo
from trio_sessions.cli._top import _drawn, _Frame, _next
from trio_sessions.testing import FakeTransport

PATIENCE = 40.0  # seconds, on a slow machine


@dataclass
class Terminal:
    """A terminal in which `top` runs."""

    process: subprocess.Popen[bytes]
    descriptor: int
    shown: str = ""

    def wait_for(self, text: str) -> None:
        """Read until it has shown a text since the last time."""
        seen = len(self.shown)
        deadline = time.monotonic() + PATIENCE
        while not re.search(text, self.shown[seen:]):
            assert time.monotonic() < deadline, self.shown
            self.read()

    def read(self) -> None:
        if select.select([self.descriptor], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # whoever wrote has ended
                self.shown += os.read(self.descriptor, 65536).decode()

    def end(self, keys: bytes) -> int:
        os.write(self.descriptor, keys)
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            self.read()
        self.read()
        return self.process.returncode

    @property
    def shows_keys(self) -> bool:
        """Whether what is typed appears, as a shell wants it."""
        return bool(termios.tcgetattr(self.descriptor)[3] & termios.ECHO)


def becomes_a_terminal_of_its_own() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(url: sa.URL, *, width: int) -> Iterator[Terminal]:
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    text = url.render_as_string(hide_password=False)
    process = subprocess.Popen(
        [sys.executable, *MODULE, "top", "--interval", "0.2", "--database-url", text],
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=ROOT,
        env=clean_environment(TERM="xterm"),
        preexec_fn=becomes_a_terminal_of_its_own,  # noqa: PLW1509 -- no thread holds a lock that it needs
    )
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(its)


@pytest.mark.parametrize(("keys", "width"), [(b"q", 60), pytest.param(b"\x03", 120, marks=longer)])
async def test_it_shows_what_happens_until_a_key_ends_it(
    keys: bytes, width: int, database: Shared
) -> None:
    """Without a traceback, and the terminal is what it was before."""
    async with database.open() as registry:
        await registry.add_session("a", FakeTransport())
        with terminal(url_of(database), width=width) as screen:
            await in_thread(partial(screen.wait_for, "1 session"))
            assert not screen.shows_keys
            await registry.add_session("b", FakeTransport())
            await in_thread(partial(screen.wait_for, "2 sessions"))
            assert ("version" in screen.shown) is (width > 90)
            code = await in_thread(partial(screen.end, keys))
            assert code == 0, screen.shown
            assert "Traceback" not in screen.shown
            assert screen.shows_keys
            assert screen.shown.rstrip().endswith("\x1b[?25h\x1b[?1049l"), "as it was"


@pytest.mark.parametrize("width", [60, 120])
async def test_without_a_terminal_it_looks_once(database: Shared, width: int) -> None:
    """No line is longer than the terminal, none has a code, and each worker is there."""
    async with database.open(worker_id="a-worker-with-a-rather-long-name-of-its-own") as a:
        await a.add_session("a", FakeTransport())
        for arguments in (["top"], ["top", "--once"]):
            found = await in_thread(partial(run, *arguments, url=url_of(database), width=width))
            assert found.exit_code == 0
            assert found.stdout.startswith("1 worker (1 alive, 0 late, 0 gone), 1 session\n")
            assert max(map(len, found.stdout.splitlines())) <= width
            assert "\x1b" not in found.stdout
            assert "…" not in found.stdout


def test_a_database_that_is_not_there_is_told_at_once(sqlite_url: sa.URL) -> None:
    found = run("top", url=sqlite_url)
    assert isinstance(found.exception, FileNotFoundError)
    assert run("top", "--interval", "0", url=sqlite_url).exit_code == 2


async def test_while_the_database_is_away_the_last_answer_stays(sqlite: Shared) -> None:
    """With the reason, and it goes on by itself when the database is back."""
    async with sqlite.open() as registry:
        await registry.add_session("a", FakeTransport())
        answers: list[list[WorkerInfo] | StoreUnavailable] = [
            [await one_worker(registry)],
            StoreUnavailable("away"),
            [],
        ]

        async def look() -> list[WorkerInfo]:
            answer = answers.pop(0)
            if isinstance(answer, StoreUnavailable):
                raise answer
            return answer

        frame = await _next(_Frame(), look)
        frame = await _next(frame, look)
        text = drawn(frame)
        assert registry.worker_id in text
        assert "no answer: away" in text
        text = drawn(await _next(frame, look))
        assert "no answer" not in text
        assert text.startswith("0 workers")


async def one_worker(registry: SessionRegistry) -> WorkerInfo:
    [worker] = await registry.workers.list()
    return worker


def drawn(frame: _Frame, most: int = 9) -> str:
    out = Console(file=StringIO(), width=100)
    out.print(_drawn(frame, width=100, most=most))
    written = out.file
    assert isinstance(written, StringIO)
    return written.getvalue()


async def test_more_workers_than_lines_are_counted(sqlite: Shared) -> None:
    """Those with the most sessions are shown; a rate is what came between two looks."""
    async with sqlite.open(worker_id="busy") as registry:
        await registry.add_session("a", FakeTransport())
        busy = await one_worker(registry)
        idle = replace(busy, worker_id="idle", incarnation="idle", sessions=0)
        text = drawn(_Frame([idle, busy], 0.0).after([idle, replace(busy, sessions=5)], 2.0), 1)
        assert "busy" in text
        assert "+2.0" in text
        assert "idle" not in text
        assert "and 1 more" in text
