"""An older copy, or another database, answers: nobody goes, and what is asked is unknown.

No stamp comes by itself in these tests, so that it is the question, or the pass, that finds out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import Shared, share_database, share_memory
from lending import make_schema
from soak import longer
from test_rewinds import add, names

from trio_sessions import SessionRegistry, StoreUnavailable

pytestmark = pytest.mark.usefixtures("nothing_in_between")

UNKNOWN = "restored, replaced or failed over"


async def assert_unknown(asker: SessionRegistry, session_id: str) -> None:
    """Ask everything about a session of another worker."""
    assert await asker.session_exists(session_id) is None
    with pytest.raises(StoreUnavailable, match=UNKNOWN):
        await asker.locate_session(session_id)
    with pytest.raises(StoreUnavailable, match=UNKNOWN):
        await asker.get_client_capabilities(session_id)
    with pytest.raises(StoreUnavailable, match=UNKNOWN):
        await asker.get_session_data(session_id)
    with pytest.raises(StoreUnavailable, match=UNKNOWN):
        await asker.get_elicitation_capable_sessions()


async def test_a_question_names_what_its_asker_knows(shared: Shared) -> None:
    """It finds an older copy out before any batch, stamp or pass."""
    async with shared.open() as a, shared.open() as b:
        await add(b, ["own"])
        copy = shared.backdoor.copy()
        await add(a, ["s"])
        await add(b, ["later"])
        assert await b.session_exists("nobody") is False
        shared.backdoor.go_back(copy)
        await assert_unknown(b, "s")
        assert await a.session_exists("own") is True
        assert a.statistics().database_rewinds == b.statistics().database_rewinds == 0
        await a.cleanup()
        assert await b.session_exists("s") is True


@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=longer), 1000])
async def test_the_address_leads_back_to_a_database_that_was_left(
    shared: Shared, batch_size: int
) -> None:
    """It knows these very workers, by higher beats, of histories that have ended."""
    async with shared.open(batch_size=batch_size) as a, shared.open() as b:
        for _ in range(20):
            await a.cleanup()
            await b.cleanup()
        left = shared.backdoor.copy()
        shared.backdoor.go_back(None)
        for one in a, a, b, b:  # the first of each may only find out
            await one.cleanup()
        transports = await add(a, names(12))
        beats = shared.backdoor.workers()
        shared.backdoor.go_back(left)
        assert all(beat > beats[name] for name, beat in shared.backdoor.workers().items())
        await assert_unknown(b, "s00")
        for one in a, b:
            report = await one.cleanup()
            assert (report.missing, report.held) == ((), ())
        assert (await a.cleanup()).refreshed == 12
        assert shared.backdoor.rows() == dict.fromkeys(transports, a.worker_id)
        assert a.statistics().database_rewinds == 2
        assert sum(one.disconnects for one in transports.values()) == 0
        assert await b.session_exists("s00") is True


@contextmanager
def share_another(request: pytest.FixtureRequest, name: str) -> Iterator[Shared]:
    """Yield a store of the same kind that has nothing to do with the other one."""
    if name == "memory":
        with share_memory() as found:
            yield found
    elif name == "sqlite":
        folder: Path = request.getfixturevalue("tmp_path")
        with share_database(name, sa.make_url(f"sqlite:///{folder / 'staging.db'}")) as found:
            yield found
    else:
        server = request.getfixturevalue("administrator")
        with make_schema(server) as url, share_database(name, url) as found:
            yield found


@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=longer), 1000])
async def test_a_copy_of_staging_is_restored_over_production(
    request: pytest.FixtureRequest, shared: Shared, batch_size: int
) -> None:
    """Its workers and sessions have the names of ours, and higher beats; no history is ours."""
    with share_another(request, shared.name) as staging:
        async with staging.open(worker_id="a") as other:
            await add(other, [*names(6), "only there"])
            for _ in range(20):
                await other.cleanup()
            copy, beats = staging.backdoor.copy(), staging.backdoor.workers()
    async with (
        shared.open(worker_id="a", batch_size=batch_size) as a,
        shared.open(worker_id="b") as b,
    ):
        transports = await add(a, names(12)) | await add(b, ["of b"])
        assert shared.backdoor.workers()["a"] < beats["a"]
        shared.backdoor.go_back(copy)
        await assert_unknown(b, "s11")
        for _ in range(3):
            for one in a, b:
                report = await one.cleanup()
                assert (report.missing, report.held, report.taken_over) == ((), (), ())
        assert report.refreshed == 1
        assert (await a.cleanup()).refreshed == 12
        assert shared.backdoor.rows() == dict.fromkeys(names(12), "a") | {
            "of b": "b",
            "only there": "a",
        }
        assert a.statistics().database_rewinds == b.statistics().database_rewinds == 1
        assert sum(one.disconnects for one in transports.values()) == 0
