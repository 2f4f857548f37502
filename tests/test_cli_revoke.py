"""`trio-sessions revoke`, on databases in use."""

import json

import pytest
import trio
from click.testing import CliRunner, Result
from conftest import Shared
from fleets import in_thread
from test_cli import clean_environment
from test_cli_operators import run, url_of

from trio_sessions import RemovalReason, SessionRevoked
from trio_sessions.cli._main import commands
from trio_sessions.testing import FakeTransport

SECRET = "a-session-id-that-is-a-credential"


async def test_an_owners_sessions_end_within_a_moment(database: Shared) -> None:
    """While their worker runs, without a pass of it; the others stay."""
    async with database.open() as registry:
        hers, others = FakeTransport(), FakeTransport()
        await registry.add_session(SECRET, hers, owner="mallory")
        await registry.add_session("kept", others, owner="alice")
        url = url_of(database)
        tried = await in_thread(lambda: run("revoke", "--owner", "mallory", "--dry-run", url=url))
        assert (tried.exit_code, tried.stdout) == (0, "1 session would be revoked\n")
        assert registry.get_session_sync(SECRET) is hers
        done = await in_thread(lambda: run("revoke", "--owner", "mallory", "--json", url=url))
        assert json.loads(done.stdout) == {"sessions": 1, "dry_run": False}
        assert SECRET not in done.output
        with trio.fail_after(30):
            while not hers.disconnects:
                await trio.sleep(0.02)
        assert (hers.reasons, others.disconnects) == ([RemovalReason.REVOKED], 0)
        with pytest.raises(SessionRevoked):
            await registry.add_session(SECRET, FakeTransport())


async def test_ids_come_by_standard_input(database: Shared) -> None:
    """Others may see the arguments of a command; an id that nobody holds is marked, too."""
    async with database.open() as registry:
        await registry.add_session(SECRET, FakeTransport())
        url = url_of(database).render_as_string(hide_password=False)
        environment = {**clean_environment(), "TRIO_SESSIONS_DATABASE_URL": url}

        def revoke() -> Result:
            ids = f"{SECRET}\n\nnobody's\n"
            return CliRunner().invoke(commands, ["revoke", "-"], input=ids, env=environment)

        result = await in_thread(revoke)
        assert (result.exit_code, result.stdout) == (0, "1 session revoked\n"), result.output
        for session_id in (SECRET, "nobody's"):
            with pytest.raises(SessionRevoked):
                await registry.add_session(session_id, FakeTransport())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "not both, and not neither"),
        (("s", "--owner", "alice"), "not both, and not neither"),
        (("--older-than", "-1"), "older_than"),
        (("s", "--ttl", "0"), "--ttl"),
        (("x" * 256,), "255"),
    ],
)
async def test_a_mistake_ends_nobody(sqlite: Shared, arguments: tuple[str, ...], told: str) -> None:
    """It is told in a sentence, and the exit code is that of bad usage."""
    async with sqlite.open() as registry:
        await registry.add_session("s", FakeTransport())
        result = await in_thread(lambda: run("revoke", *arguments, url=url_of(sqlite)))
        assert result.exit_code == 2
        assert told in result.stderr
        assert "Traceback" not in result.output
        assert await registry.locate_session("s") == registry.worker_id
