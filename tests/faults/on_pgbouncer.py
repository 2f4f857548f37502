"""Faults of PgBouncer, which hands connections of PostgreSQL on, one for each transaction."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from fleets import in_thread, quick_store
from servers import _user, query, run_sql

from faults.matrix import Database, fault
from faults.world import OPERATION, World

PG = Database.POSTGRESQL

_SETTINGS = """
[databases]
postgres = host={server} dbname=postgres user=postgres
[pgbouncer]
pool_mode = transaction
auth_type = any
listen_port = 6432
unix_socket_dir = {folder}
default_pool_size = 40
max_client_conn = 200
server_login_retry = 0.2
"""


class _PgBouncer:
    """A PgBouncer in front of the server, which can be killed."""

    def __init__(self, program: str, folder: Path, server: sa.URL) -> None:
        self.url = server.update_query_dict({"host": str(folder)}).set(port=6432)
        self._command = [program, str(folder / "settings.ini")]
        self._folder = folder
        (folder / "settings.ini").write_text(
            _SETTINGS.format(server=server.query["host"], folder=folder)
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, user=_user(), cwd=self._folder
            )
        deadline = time.monotonic() + 30.0
        while True:
            try:
                query(self.url, "SELECT 1")
            except sa.exc.OperationalError:
                said = (self._folder / "log").read_text()
                assert time.monotonic() < deadline, said
                assert self._process.poll() is None, said
                time.sleep(0.05)  # it tells nobody when it is ready
            else:
                return

    def kill(self) -> int:
        """Kill it; return how it has ended."""
        process, self._process = self._process, None
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        return process.wait()

    def close(self) -> None:
        if self._process is not None:
            self.kill()


@contextmanager
def _behind_pgbouncer(world: World) -> Iterator[_PgBouncer]:
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("PGBOUNCER IS MISSING: install Debian's package pgbouncer")
    run_sql(  # as docs/howto/pgbouncer.md says
        world.url,
        "ALTER ROLE postgres SET statement_timeout = '3.2s'",
        "ALTER ROLE postgres SET lock_timeout = '0.5s'",
        "ALTER ROLE postgres SET idle_in_transaction_session_timeout = '4s'",
    )
    world.make_store = partial(
        quick_store, operation_timeout=OPERATION, server_timeouts=False, listen=False
    )
    with tempfile.TemporaryDirectory(prefix="ts-pb-") as folder:
        if (user := _user()) is not None:
            shutil.chown(folder, user)
        bouncer = _PgBouncer(program, Path(folder), world.url)
        bouncer.start()
        world.entrance = bouncer.url
        try:
            yield bouncer
        finally:
            bouncer.close()


@fault(PG, arrange=_behind_pgbouncer)
async def pgbouncer_is_killed(world: World) -> AsyncIterator[str]:
    """SIGKILL to a PgBouncer in transaction mode that all workers are behind; started again."""
    bouncer = world.arranged
    async with world.incomplete_passes():
        assert await in_thread(bouncer.kill) == -signal.SIGKILL
    yield "its process had ended, and a pass of each worker was incomplete"
    await in_thread(bouncer.start)


@fault(PG, arrange=_behind_pgbouncer)
async def the_server_behind_pgbouncer_is_killed(world: World) -> AsyncIterator[str]:
    """SIGKILL to the server's processes in the middle of a pass; PgBouncer goes on, and keeps
    the workers' connections."""
    async with world.incomplete_passes(), world.in_a_pass():
        await in_thread(world.server.kill)
    assert not world.server.is_running
    yield "its processes had ended, and a pass of each worker was incomplete"
    await in_thread(world.server.start)
