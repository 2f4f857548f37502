"""Each fault of the matrix happens to a fleet on a real database, and does no harm."""

import json
import os
import platform
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servers import Server, make_server, query
from soak import SOAK
from unmeasured import unmeasured

from faults import on_files, on_networks, on_pgbouncer, on_room, on_rows, on_servers, on_workers
from faults.matrix import FAULTS, Database, Fault, assert_harmless, play
from faults.world import open_world

pytestmark = unmeasured

ROUNDS = int(os.environ.get("TRIO_SESSIONS_FAULT_ROUNDS", "5" if SOAK else "1"))
RECORDS = os.environ.get("TRIO_SESSIONS_RELIABILITY")

CHOSEN = FAULTS if SOAK or RECORDS else FAULTS[3::5]
"""In the gate one in five: all of them take two minutes of its time."""

CATALOGUE = [on_servers, on_networks, on_pgbouncer, on_room, on_rows, on_workers, on_files]


def record(**told: Any) -> None:
    """Append a line to the records, if there are to be any."""
    if RECORDS is not None:
        with Path(RECORDS).open("a") as file:
            file.write(json.dumps({"python": platform.python_version(), **told}) + "\n")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.timeout(300 + 120 * ROUNDS)
@pytest.mark.parametrize("fault", CHOSEN, ids=str)
async def test_a_fault_does_no_harm(
    fault: Fault, stack: ExitStack, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Nobody who lives is disconnected, nothing is left over, and all is well again."""
    server: Server | None = None
    version, url = sqlite3.sqlite_version, sa.make_url(f"sqlite:///{tmp_path / 'sessions.db'}")
    try:
        if fault.database is Database.POSTGRESQL:
            empty_data = request.getfixturevalue("empty_data")
            server = stack.enter_context(make_server(empty_data, **fault.options))
            url = server.url
            [(version,)] = query(url, "SHOW server_version")
        async with open_world(url, server, fault.session_ttl, fault.arrange, 1) as world:
            played = await play(world, fault, ROUNDS)
    except pytest.skip.Exception as skipped:
        record(fault=fault.name, how=fault.how, database=fault.database.value, skipped=skipped.msg)
        raise
    record(**played.record(version=version))
    assert_harmless(fault, played)
