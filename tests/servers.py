"""Roles, databases, a standby and servers of PostgreSQL that a test makes, and removes again."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

__all__ = [
    "Server",
    "frozen",
    "make_data",
    "make_database",
    "make_follower",
    "make_role",
    "make_server",
    "make_standby",
    "query",
    "run_sql",
]

_STARTS_WITHIN = 30.0  # seconds, on a slow machine


@lru_cache(20)
def _engine(url: sa.URL) -> sa.Engine:
    """Return one that keeps no connection; it takes longer to make than most statements."""
    return sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)


def run_sql(url: sa.URL, *statements: str) -> None:
    """Run statements, each a transaction of its own."""
    with _engine(url).connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def query(url: sa.URL, statement: str) -> list[tuple[Any, ...]]:
    """Return what a statement returns."""
    with _engine(url).connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


@contextmanager
def make_role(url: sa.URL, *settings: str) -> Iterator[sa.URL]:
    """Yield the URL of a role without any rights, which may connect.

    Args:
        url: of a superuser.
        settings: what follows ALTER ROLE … SET.
    """
    role = f"r_{uuid.uuid4().hex[:12]}"
    run_sql(url, f"CREATE ROLE {role} LOGIN", *(f"ALTER ROLE {role} SET {s}" for s in settings))
    try:
        yield url.set(username=role)
    finally:
        run_sql(url, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


@contextmanager
def make_database(url: sa.URL, *settings: str, encoding: str = "UTF8") -> Iterator[sa.URL]:
    """Yield the URL of a new database.

    Args:
        url: of a superuser.
        settings: what follows ALTER DATABASE … SET.
        encoding: the server's own for that database.
    """
    name = f"d_{uuid.uuid4().hex[:12]}"
    run_sql(
        url,
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
        *(f"ALTER DATABASE {name} SET {setting}" for setting in settings),
    )
    try:
        yield url.set(database=name)
    finally:
        run_sql(url, f"DROP DATABASE {name} WITH (FORCE)")


def _binaries(url: sa.URL) -> Path:
    """Return where the programs of the test suite's own server are; skip where it is another's."""
    host = url.query.get("host")
    if not isinstance(host, str) or "TRIO_SESSIONS_TEST_POSTGRESQL_URL" in os.environ:
        pytest.skip("servers are made by the programs of the test suite's own server only")
    [(found,)] = query(url, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")
    for name in ("pg_basebackup", "initdb", "postgres"):
        if not (Path(found) / name).exists():
            pytest.skip(f"no {name} in {found}")
    return Path(found)


def _user() -> str | None:
    return "pgserver" if os.geteuid() == 0 else None  # PostgreSQL does not run as root


@contextmanager
def make_standby(url: sa.URL) -> Iterator[sa.URL]:
    """Yield the URL of a hot standby of the test suite's own server; skip where it is another's."""
    primary, binaries, user = url.query.get("host"), _binaries(url), _user()
    assert isinstance(primary, str)

    def run(program: str, *arguments: str) -> None:
        with log.open("wb") as said:  # no pipe: the server keeps it open
            result = subprocess.run(
                [binaries / program, *arguments],
                check=False,
                user=user,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=60,
            )
        assert result.returncode == 0, log.read_text()

    with tempfile.TemporaryDirectory(prefix="ts-sb-", ignore_cleanup_errors=True) as folder:
        if user is not None:
            shutil.chown(folder, user)
        data, log = f"{folder}/data", Path(folder) / "log"
        source = ("--host", primary, "--username", "postgres", "--pgdata", data)
        run("pg_basebackup", *source, "--write-recovery-conf", "--checkpoint", "fast")
        listens = f"-c unix_socket_directories={folder} -c listen_addresses="
        run("pg_ctl", "--pgdata", data, "--wait", "--options", listens, "start")
        try:
            yield url.update_query_dict({"host": folder})
        finally:
            run("pg_ctl", "--pgdata", data, "--mode", "immediate", "stop")


# ---- servers of a test's own ----

# The server ends with us, however we end: then the other end of the pipe is closed.
_KEEP = """
"$@" > log 2>&1 &
read -r _
kill -KILL $! 2>/dev/null
wait $!
"""

_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "log_statement": "all",
    "log_line_prefix": "%p ",
    "autovacuum": "off",
    # Among its data, and gone with them: one that is killed leaves what it shares elsewhere.
    "dynamic_shared_memory_type": "mmap",
}


class Server:
    """A PostgreSQL that a test may stop, kill, freeze, copy, and lead back to an older copy.

    All block, and none for long: a test calls them in a thread where others are to go on.

    Args:
        binaries: where its programs are.
        folder: is its own; ``data`` is in it.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder = folder
        self.url = sa.URL.create(
            "postgresql+psycopg",
            username="postgres",
            database="postgres",
            query={"host": str(folder)},
        )
        self.binaries = binaries
        self._keeper: subprocess.Popen[bytes] | None = None
        self._copies = 0

    # ---- its life ----

    def start(self, environment: Mapping[str, str] | None = None, /, **options: str) -> None:
        """Start it, and wait until it takes connections.

        Args:
            environment: is added to ours.
            options: of the server, by name.
        """
        assert self._keeper is None
        given = {**_OPTIONS, "unix_socket_directories": str(self.folder), **options}
        self._keeper = subprocess.Popen(
            [
                *("sh", "-c", _KEEP, "sh", self.binaries / "postgres", "-D", self.folder / "data"),
                *(word for name, value in given.items() for word in ("-c", f"{name}={value}")),
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # "Killed"
            user=_user(),
            cwd=self.folder,
            env={**os.environ, **(environment or {})},
        )
        self.wait()

    def wait(self) -> None:
        """Wait until it takes connections."""
        deadline = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                query(self.url, "SELECT 1")
            except sa.exc.OperationalError:
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.05)  # it tells nobody when it is ready
            else:
                return

    @property
    def is_running(self) -> bool:
        """Whether it was started, and neither stopped nor killed."""
        return self._keeper is not None

    @property
    def pid(self) -> int:
        """Of its first process, the parent of all others."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def processes(self) -> list[int]:
        """Return the ids of all its processes, the first one first."""
        return [self.pid, *_children(self.pid)]

    def stop(self) -> None:
        """Shut it down in good order."""
        os.kill(self.pid, signal.SIGINT)
        deadline = time.monotonic() + _STARTS_WITHIN
        while (self.folder / "data" / "postmaster.pid").exists():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)  # nor when it has ended
        self._reap()

    def kill(self) -> None:
        """End all its processes by SIGKILL, at the same moment."""
        pids = self.processes()
        for pid in pids:  # so that none does anything about the end of another
            _signal(pid, signal.SIGSTOP)
        for pid in {*pids, *self.processes()}:
            _signal(pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        keeper, self._keeper = self._keeper, None
        assert keeper is not None
        keeper.communicate()

    # ---- as a standby ----

    def lag(self, *, for_good: bool = False) -> None:
        """Let it replay no more of what it follows; for good: nor receive it."""
        if for_good:
            run_sql(self.url, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
            self._wait_for("SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")
        run_sql(self.url, "SELECT pg_wal_replay_pause()")
        self._wait_for("SELECT 1 WHERE pg_get_wal_replay_pause_state() = 'paused'")

    def _wait_for(self, statement: str) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN
        while not query(self.url, statement):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)  # nor how far it has come

    # ---- its data ----

    def copy(self) -> Path:
        """Return a copy of its data as it is now, taken while it runs."""
        self._copies += 1
        copy = self.folder / f"copy-{self._copies}"
        self.run(
            *("pg_basebackup", "--host", str(self.folder), "--username", "postgres"),
            *("--pgdata", str(copy), "--checkpoint", "fast", "--no-sync"),
        )
        return copy

    def go_back(self, copy: Path) -> None:
        """Have another directory as its data, while it does not run."""
        assert not self.is_running
        shutil.rmtree(self.folder / "data")
        copy.rename(self.folder / "data")

    def run(self, program: str, *arguments: str, told: str = "") -> None:
        """Run one of its programs, and tell it something on its standard input."""
        subprocess.run(
            [self.binaries / program, *arguments],
            check=True,
            user=_user(),
            cwd=self.folder,
            input=told.encode(),
            capture_output=True,
            timeout=60,
        )

    def log(self) -> str:
        """Return what it has said since it was started."""
        return (self.folder / "log").read_text(errors="replace")


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started, and that are there."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes of a server by SIGSTOP for the length of the block."""
    try:
        # One that the server has started for a moment may have ended since it was listed.
        stopped = [_signal(pid, signal.SIGSTOP) for pid in pids]
        assert any(stopped)
        yield
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


@contextmanager
def make_data(url: sa.URL) -> Iterator[tuple[Path, Path]]:
    """Yield where the programs of a server are, and the data of one that is empty.

    Args:
        url: the test suite's own server.
    """
    if not Path("/proc/self/stat").exists():
        pytest.skip("the processes of a server are found by /proc")
    binaries = _binaries(url)
    with _folder() as folder:
        Server(binaries, folder).run(
            *("initdb", "--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync"),
            *("-U", "postgres", "-D", str(folder / "data")),
        )
        # Two of three files, which each server would copy and remove for nothing.
        Server(binaries, folder).run(
            *("postgres", "--single", "-D", str(folder / "data"), "-c", "fsync=off", "postgres"),
            told="UPDATE pg_database SET datistemplate = false\n"
            "DROP DATABASE template0\nDROP DATABASE template1\n",
        )
        yield binaries, folder / "data"


@contextmanager
def make_server(data: tuple[Path, Path], **options: str) -> Iterator[Server]:
    """Yield a server that runs, on a copy of what `make_data` has made."""
    binaries, empty = data
    with _folder() as folder:
        server = Server(binaries, folder)
        subprocess.run(["cp", "-a", empty, folder / "data"], check=True)
        server.start(**options)
        try:
            yield server
        finally:
            if server.is_running:
                server.kill()


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ts-pg-", ignore_cleanup_errors=True) as folder:
        if (user := _user()) is not None:
            shutil.chown(folder, user)
        yield Path(folder)


@contextmanager
def make_follower(primary: Server) -> Iterator[Server]:
    """Yield a hot standby of a server of a test's own."""
    with _folder() as folder:
        standby = Server(primary.binaries, folder)
        standby.run(
            *("pg_basebackup", "--host", str(primary.folder), "--username", "postgres"),
            *("--pgdata", str(folder / "data"), "--checkpoint", "fast", "--no-sync"),
            "--write-recovery-conf",
        )
        standby.start()
        try:
            yield standby
        finally:
            if standby.is_running:
                standby.kill()
