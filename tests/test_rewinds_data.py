"""What a worker answers of a session whose row it could not write anew since a rewind."""

import pytest
import trio
from conftest import Shared

from trio_sessions import StoreUnavailable
from trio_sessions.errors import RowDoubtful
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")


@pytest.mark.parametrize("known", [None, {"n": 1}])
async def test_what_was_known_before_is_no_answer_while_the_row_is_in_doubt(
    shared: Shared, known: dict[str, int] | None
) -> None:
    """The row names another holder, who may have lost it since: nobody knows whose data it is."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b:
        await a.add_session("s", FakeTransport(), data=known)
        await trio.sleep(0.3)  # far more than a busy machine needs to send a claim off
        await b.add_session("s", FakeTransport())
        await b.set_session_data("s", {"m": 2}, merge=True)
        copy = shared.backdoor.copy()
        await a.add_session("t", FakeTransport())
        shared.backdoor.go_back(copy)
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        entry = a._house.table.get("s")
        assert entry is not None
        assert isinstance(entry.error, RowDoubtful)
        store.fail(Fault.FAILS, "Claim")  # so it stays, however busy the machine is
        with pytest.raises(StoreUnavailable, match="went back"):
            await a.get_session_data("s")
        with pytest.raises(StoreUnavailable, match="replace all of it"):
            await a.set_session_data("s", {"k": 3}, merge=True)
        assert await b.get_session_data("s") == {**(known or {}), "m": 2}


async def test_in_an_outage_only_what_is_said_here_since_is_an_answer(shared: Shared) -> None:
    """That is newer than whatever another worker may have said before the database went back."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        copy = shared.backdoor.copy()
        await a.add_session("t", FakeTransport())
        shared.backdoor.go_back(copy)
        store.fail(Fault.FAILS, "Claim")
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        with pytest.raises(StoreUnavailable, match="went back"):
            await a.get_session_data("s")
        await a.set_session_data("s", {"n": 2})
        assert await a.get_session_data("s") == {"n": 2}
        store.heal()
        await a.cleanup()
        assert await a.get_session_data("s") == {"n": 2}
