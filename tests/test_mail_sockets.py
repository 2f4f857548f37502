"""Letters between workers of one host: by sockets, at most once, in order, by nobody else."""

import errno
import itertools
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio.testing
from callees import TOO_LONG, Handlers, until_quiet, waiting
from conftest import Shared, share_memory
from processes import killed_at_the_end
from test_forks import run
from test_peer_processes import CALLEE_ON_ASYNCIO, CALLEE_ON_TRIO, url_of

from trio_sessions import SessionRegistry, StoreUnavailable, WorkerGone, aio, open_registry
from trio_sessions._mail._incoming import Incoming
from trio_sessions._mail._sockets import connected, listen, pack, stop_listening
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault, FaultyStore

LONG_AGO = time.time() - 1000.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where workers listen: the path of a socket is short."""
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield Path(name, "mail")


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


def files(folder: Path) -> set[Path]:
    return set(folder.iterdir())


def modes(*paths: Path) -> list[str]:
    return [oct(path.stat().st_mode & 0o777) for path in paths]


def open_for_all(folder: Path) -> None:
    """Let every user come to the sockets."""
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o666 if path.is_socket() else 0o755)


async def incarnation_of(registry: SessionRegistry, worker_id: str) -> str:
    workers = await registry.workers.list()
    [found] = [one.incarnation for one in workers if one.worker_id == worker_id]
    return found


# ---- what goes by sockets ----


async def test_calls_and_streams_need_no_database(
    everywhere: Shared, handlers: Handlers, folder: Path
) -> None:
    """Not a letter is left there, and they go on while it is away."""
    stores = [FaultyStore(everywhere.make_store()) for _ in range(2)]
    settings: dict[str, Any] = {"mail_sockets": folder, "handlers": handlers.all()}
    async with (
        everywhere.open(store=stores[0], worker_id="callee", **settings) as callee,
        everywhere.open(store=stores[1], **settings) as caller,
    ):
        to = await incarnation_of(caller, "callee")
        for is_away in (False, True):
            for store in stores if is_away else ():
                store.fail()
            with trio.fail_after(TOO_LONG):
                assert await caller.workers.call(to, "echo", {"a": "ü"}, timeout=10) == {"a": "ü"}
                async with caller.workers.stream(to, "count", 500, timeout=10) as items:
                    assert [item async for item in items] == list(range(500))
                async with caller.workers.stream(to, "count_and_hang", 3, timeout=10) as items:
                    assert [await anext(items) for _ in range(3)] == [0, 1, 2]
                await handlers.until(handlers.ended, "count_and_hang")
                handlers.ended.clear()
            await until_quiet(callee)
        assert waiting(caller) == (0, 0)
        assert [store.calls["Post"] for store in stores] == [0, 0]
        for store in stores:
            store.heal()
    assert files(folder) == set()


@pytest.mark.parametrize("whose", ["caller", "callee"])
async def test_a_worker_without_the_setting_is_reached_by_the_database(
    shared: Shared, handlers: Handlers, folder: Path, whose: str
) -> None:
    """And answers by it; nobody is told."""
    settings: dict[str, dict[str, Any]] = {"caller": {}, "callee": {"handlers": handlers.all()}}
    settings[whose]["mail_sockets"] = folder
    async with (
        shared.open(worker_id="callee", **settings["callee"]),
        shared.open(**settings["caller"]) as caller,
    ):
        to = await incarnation_of(caller, "callee")
        assert await caller.workers.call(to, "echo", 1, timeout=TOO_LONG) == 1
        async with caller.workers.stream(to, "count", 3, timeout=TOO_LONG) as items:
            assert [item async for item in items] == [0, 1, 2]


async def test_who_closes_tells_its_callers_by_the_socket(handlers: Handlers, folder: Path) -> None:
    """Also whom it has sent nothing before, and though the database is away."""
    store = FaultyStore(MemoryStore())
    async with (
        open_registry(store, mail_sockets=folder) as caller,
        trio.open_nursery() as nursery,
    ):
        async with open_registry(
            store, mail_sockets=folder, handlers=handlers.all(), worker_id="callee"
        ):
            to = await incarnation_of(caller, "callee")

            async def call() -> None:
                with pytest.raises(WorkerGone, match="the worker has closed"):
                    await caller.workers.call(to, "hang", 1, timeout=1000)

            nursery.start_soon(call)
            await handlers.until(handlers.begun, "hang")
            store.fail()
        with trio.fail_after(TOO_LONG):
            while waiting(caller) != (0, 0):
                await trio.sleep(0.01)
        store.heal()


@pytest.mark.parametrize("program", [CALLEE_ON_TRIO, CALLEE_ON_ASYNCIO], ids=["trio", "aio"])
async def test_a_callee_that_is_killed_is_known_to_be_gone(
    postgresql: Shared, folder: Path, program: str
) -> None:
    """In the middle of a stream: what it had sent has arrived, and its stamps say that it died."""
    program = program.replace('worker_id="callee"', 'worker_id="callee", mail_sockets=sys.argv[2]')
    command = [sys.executable, "-c", program, url_of(postgresql), str(folder)]
    store = FaultyStore(postgresql.make_store())
    async with (
        postgresql.open(store=store, mail_sockets=folder) as registry,
        killed_at_the_end(command) as (process, lines),
    ):
        assert await anext(lines) == "ready"
        to = await incarnation_of(registry, "callee")
        seen: list[Any] = []
        with pytest.raises(WorkerGone, match="'count' at worker"):
            async with registry.workers.stream(to, "count", 50, timeout=1000) as items:
                async for item in items:
                    seen.append(item)
                    if len(seen) == 50:
                        process.send_signal(signal.SIGKILL)
                        assert store.calls["Post"] == 0
        assert seen == list(range(50))
        with pytest.raises(WorkerGone):
            await registry.workers.call(to, "hang", 1, timeout=1000)
        assert len(files(folder)) == 2  # that of the dead one, which is younger than a minute


# ---- who may connect, and what is taken for a letter ----


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 8, b"\0\0\0\2\xff\xff"],
    ids=["http", "too long", "no text"],
)
async def test_nonsense_is_cut_off(
    handlers: Handlers, folder: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """With one line in the log; others are not disturbed."""
    store = MemoryStore()
    async with (
        open_registry(store, mail_sockets=folder, handlers=handlers.all(), worker_id="w") as callee,
        open_registry(store, mail_sockets=folder) as caller,
    ):
        to = await incarnation_of(caller, "w")
        for _ in range(2):
            with connected_to(folder, to) as peer, trio.fail_after(TOO_LONG):
                assert await peer.send(data) == len(data)
                assert await peer.recv(1) == b""
        assert await caller.workers.call(to, "echo", 1, timeout=10) == 1
        await until_quiet(callee)
    logged = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one.getMessage().partition(",")[0] for one in logged] == ["a connection is cut off"] * 2
    caplog.clear()


async def test_a_letter_that_was_cut_off_is_dropped(handlers: Handlers, folder: Path) -> None:
    """It was not left, so its sender may leave it by the database."""
    caller_name = "somebody"
    letter = pack(f'[["call", "{caller_name}", 1, "hang", 1000.0, 0], 1]')
    async with open_registry(mail_sockets=folder, handlers=handlers.all(), worker_id="w") as callee:
        to = await incarnation_of(callee, "w")
        for data in (letter[:-1], letter):
            with connected_to(folder, to) as peer:
                assert await peer.send(data) == len(data)
            await trio.testing.wait_all_tasks_blocked()
        assert handlers.begun == ["hang"]


def connected_to(folder: Path, incarnation: str) -> trio.socket.SocketType:
    peer = connected(str(folder), incarnation)
    assert peer is not None
    return trio.socket.from_stdlib_socket(peer)


CONNECT = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(20)
peer.connect(sys.argv[1])
try:
    peer.sendall(bytes.fromhex(sys.argv[2]))
    assert peer.recv(1) == b""
except (BrokenPipeError, ConnectionResetError):
    pass
print("cut off")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_cut_off(handlers: Handlers, folder: Path) -> None:
    """Even where somebody has opened the file for all."""
    async with open_registry(mail_sockets=folder, handlers=handlers.all()):
        [path] = files(folder)
        assert modes(folder, path) == ["0o700", "0o600"]
        open_for_all(folder)
        letter = pack('[["call", "somebody", 1, "hang", 1000.0, 0], 1]').hex()
        ended = await trio.run_process(
            ["/usr/bin/env", "python3", "-c", CONNECT, str(path), letter],
            capture_stdout=True,
            user=65534,
        )
        assert ended.stdout == b"cut off\n"
        await trio.testing.wait_all_tasks_blocked()
        assert handlers.begun == []


# ---- the folder ----


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir() or path.chmod(0o770), "nobody else may write to"),
        (lambda path: path.mkdir() or path.chmod(0o707), "nobody else may write to"),
        (lambda path: path.touch(0o600), "cannot be used"),
        (lambda path: path.symlink_to(another_s()), "a folder of this user"),
        (lambda path: path.symlink_to(path.parent / "nowhere" / "at all"), "cannot be used"),
    ],
    ids=["of the group", "of others", "no folder", "another's", "missing"],
)
@pytest.mark.parametrize("facade", ["trio", "aio"])
async def test_a_folder_that_is_not_safe_is_refused(
    folder: Path, make: Callable[[Path], object], says: str, facade: str
) -> None:
    """At opening, by the name of the setting, and nothing stays open."""
    make(folder)
    with pytest.raises(ValueError, match=f"mail_sockets .*{says}"):
        if facade == "trio":
            async with open_registry(mail_sockets=folder):
                raise AssertionError("it is open")
        else:
            await trio.to_thread.run_sync(open_on_asyncio, folder)


def test_a_folder_whose_parent_is_missing_is_not_made(folder: Path) -> None:
    """The error says which one is missing: the name may be misspelt."""
    with pytest.raises(ValueError, match=f"mail_sockets cannot be used: there is no {folder}, "):
        listen(str(folder / "mail"), "w/1")
    assert not folder.exists()


def test_a_folder_that_others_may_read_will_do(folder: Path) -> None:
    """Nobody else may write to it, and its sockets are its user's only: it stays as it is."""
    folder.mkdir()
    folder.chmod(0o755)
    stop_listening(listen(str(folder), "w/1"))
    assert folder.stat().st_mode & 0o777 == 0o755


def open_on_asyncio(folder: Path) -> None:
    import asyncio

    async def main() -> None:
        async with aio.SessionRegistry(mail_sockets=folder):
            raise AssertionError("it is open")

    asyncio.run(main())


def another_s() -> str:
    """Return the path of a folder of another user."""
    if os.geteuid():
        return "/"
    path = tempfile.mkdtemp(prefix="ts-")
    os.chown(path, 65534, 65534)
    return path


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (7, TypeError, "mail_sockets must be the path of a folder, not int"),
        (b"/run", TypeError, "mail_sockets must be the path of a folder, not bytes"),
        ("", ValueError, "mail_sockets must be the path of a folder"),
        ("a\0", ValueError, "mail_sockets must be the path of a folder"),
        ("/" + "x" * 76, ValueError, "mail_sockets must be a path of at most 76 bytes"),
    ],
)
def test_a_bad_setting_is_refused_by_name(value: Any, error: type[Exception], says: str) -> None:
    """At the call; where the path of a socket has at most 107 bytes."""
    for registry in (open_registry, aio.SessionRegistry):
        with pytest.raises(error, match=says):
            registry(mail_sockets=value)


async def test_the_longest_path_works(folder: Path, handlers: Handlers) -> None:
    path = folder.parent / ("x" * (76 - len(str(folder.parent)) - 1))
    async with open_registry(mail_sockets=path, handlers=handlers.all(), worker_id="w"):
        assert len(files(path)) == 1


def test_sockets_of_the_dead_are_removed(folder: Path) -> None:
    """Those of the living stay, and what may just be beginning, and what is none of ours."""
    folder.mkdir(0o700)
    other = folder / "other.mail1"
    other.touch()
    sockets = {name: listen(str(folder), name) for name in ("dead", "young", "living")}
    paths = {name: Path(one.getsockname()) for name, one in sockets.items()}
    for name in ("dead", "young"):
        sockets[name].close()
    for path in (paths["dead"], paths["living"], other):
        os.utime(path, (LONG_AGO, LONG_AGO))

    async def main() -> None:
        async with open_registry(mail_sockets=folder):
            assert len(files(folder)) == 4

    trio.run(main)
    assert files(folder) == {paths["young"], paths["living"], other}
    sockets["living"].close()


async def test_nothing_stays_where_opening_fails(folder: Path) -> None:
    store = FaultyStore(MemoryStore())
    store.fail(Fault.FAILS, "begin")
    with pytest.raises(StoreUnavailable):
        async with open_registry(store, mail_sockets=folder):
            raise AssertionError("it is open")
    assert files(folder) == set()


def test_a_forked_child_takes_nothing(postgresql_schema: Any, folder: Path) -> None:
    """No letter, no connection and no file: it stays for a while, and leaves the block."""
    printed = run(
        f"""
        async def echo(payload):
            return payload
        async def main():
            settings = dict(mail_sockets={str(folder)!r}, handlers=dict(echo=echo))
            async with (
                open_registry(store, worker_id="w", **settings),
                open_registry(url, **settings) as caller,
            ):
                [to] = [w.incarnation for w in await caller.workers.list() if w.worker_id == "w"]
                call = lambda n: caller.workers.call(to, "echo", n, timeout=30)
                assert await call(0) == 0
                files = os.listdir({str(folder)!r})
                pid = os.fork()
                if not pid:
                    try:
                        await call(1)
                    except RegistryClosed:
                        pass
                    else:
                        print("IT CALLS", flush=True)
                    await trio.sleep(0.5)
                    sys.exit(7)
                for number in range(200):
                    assert await call(number) == number
                    await trio.sleep(0.005)
                assert await end_of(pid) == 7
                assert await call(1) == 1
                print(os.listdir({str(folder)!r}) == files and len(files))
            print(os.listdir({str(folder)!r}))
        trio.run(main)
        """,
        postgresql_schema,
    )
    assert printed == ["2", "[]"]


def test_opening_twice_in_one_process(folder: Path) -> None:
    """Each opening is an incarnation of its own, also under one worker's id."""
    with share_memory() as shared:

        async def main() -> None:
            for _ in range(2):
                async with shared.open(mail_sockets=folder, worker_id="w"):
                    assert len(files(folder)) == 1

        trio.run(main)


class Full:
    """A listening socket that is readable, and of which nothing can be had while it is full."""

    def __init__(self, behind: socket.socket) -> None:
        self.is_full = True
        self.tried: list[float] = []
        self._behind = behind

    def fileno(self) -> int:
        return self._behind.fileno()

    def accept(self) -> tuple[socket.socket, str]:
        self.tried.append(trio.current_time())
        if self.is_full:
            raise OSError(errno.EMFILE, "Too many open files")
        self._behind.recv(1)
        raise BlockingIOError


async def test_where_files_cannot_be_opened_the_pause_grows(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told once, tried ever more seldom, and begins anew when it has worked."""
    monkeypatch.setattr("trio_sessions._persisting.random.random", lambda: 0.5)
    here, there = socket.socketpair()
    full: Any = Full(here)
    nobody: Any = None
    edge: Any = SimpleNamespace(is_inherited=False)
    incoming = Incoming(None, edge=edge, background=nobody)
    with here, there, caplog.at_level(logging.WARNING, "trio_sessions.mail"):
        incoming._listener = full
        async with trio.open_nursery() as nursery:
            nursery.start_soon(incoming._accept, full)
            there.send(b"1")
            await trio.sleep(30)
            pauses = [b - a for a, b in itertools.pairwise(full.tried)]
            assert pauses[:8] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
            assert len(caplog.records) == 1
            full.is_full = False
            await trio.sleep(6)
            full.is_full, full.tried = True, []
            there.send(b"2")
            await trio.sleep(0.15)
            assert full.tried[1] - full.tried[0] == pytest.approx(0.1)
            assert len(caplog.records) == 2
            nursery.cancel_scope.cancel()
