"""fastmcp behind the router: its manager is made late, and its names of streams are random.

Each with fastmcp, where it is installed, and with a server of ours that is like it: see `mcp_late`.
"""

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, URL, at, begin, client, open_fleet, raw, run
from mcp_late import KIND_NAMES, KINDS
from test_mcp_events import call, events, headers, one_store

from trio_sessions.mcp._events import LOST

pytestmark = [
    pytest.mark.parametrize("kind", KIND_NAMES),
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"),
]


def test_every_worker_answers_for_every_session(backend: str, kind: str) -> None:
    """With progress and with elicitation, and nothing of the session is left at its end."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), make=KINDS[kind]) as fleet:
            async with client(fleet) as session:
                for n in range(1, 4):
                    answer = await session.call_tool("add", {"n": n})
                    assert answer.structured_content == {"result": n + 1}
                    assert "hello bob" in str((await session.call_tool("ask", {})).content)
                assert len({worker for _, worker, _ in fleet.seen}) == 2
            for worker in fleet.workers:
                assert worker.ids() == []

    run(backend, scenario)


@pytest.mark.parametrize("place", ["here", "elsewhere", "after its worker's death"])
def test_an_answer_that_was_missed_is_sent_again(backend: str, kind: str, place: str) -> None:
    """And the stream ends with it, though each worker names streams in its own way."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), make=KINDS[kind]) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            asked = call(7, "add", {"n": 2})
            said = events((await http.post(URL, json=asked, headers=headers(session_id))).text)
            assert [message is None for _, message in said] == [True, False, False, False]
            if place == "elsewhere":
                at(fleet, 1)
            elif place != "here":
                await fleet.workers[0].keeps(session_id)
                await fleet.workers.pop(0).vanish()
                at(fleet, 0)
            for seen in (0, 2):
                again = await http.get(
                    URL, headers=headers(session_id, last_event_id=said[seen][0])
                )
                assert [m for _, m in events(again.text)] == [m for _, m in said[seen + 1 :]]

    run(backend, scenario)


def test_a_call_that_goes_on_is_heard_to_its_end(backend: str, kind: str) -> None:
    """Its client comes back while it runs, through another worker."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), make=KINDS[kind]) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            asked = call(7, "slow", {"gate": "g"})
            async with http.stream("POST", URL, json=asked, headers=headers(session_id)) as answer:
                async for text in answer.aiter_text():
                    first = events(text)
                    break
            calls = fleet.workers[0].calls
            await calls.started.setdefault("g", anyio.Event()).wait()
            at(fleet, 1)
            again = headers(session_id, last_event_id=first[0][0])
            heard = []
            async with http.stream("GET", URL, headers=again) as answer:
                async for text in answer.aiter_text():
                    heard += events(text)
                    calls.gates["g"].set()
                    if heard[-1][1] is not None:
                        break
            assert "through g" in str(heard[-1][1]["result"])

    run(backend, scenario)


def test_a_call_that_died_with_its_worker_is_answered(backend: str, kind: str) -> None:
    """Its client is told so, and the stream ends; it is not run again."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), make=KINDS[kind]) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            dying = fleet.workers[0]
            asked = call(7, "slow", {"gate": "g"})
            async with http.stream("POST", URL, json=asked, headers=headers(session_id)) as answer:
                async for text in answer.aiter_text():
                    first = events(text)
                    break
                await dying.calls.started.setdefault("g", anyio.Event()).wait()
            fleet.workers.remove(dying)
            await dying.vanish()
            at(fleet, 0)
            again = await http.get(URL, headers=headers(session_id, last_event_id=first[0][0]))
            (told,) = events(again.text)
            assert told[1]["error"]["message"] == LOST
            assert fleet.workers[0].calls.ran == []

    run(backend, scenario)


def test_bob_is_not_sent_what_alice_was_told(backend: str, kind: str) -> None:
    """Nor does he reach her session; before and after its worker's death."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), make=KINDS[kind], authenticates=True) as fleet,
            raw(fleet, "alice") as alice,
            raw(fleet, "bob") as bob,
        ):
            of_alice, of_bob = await begin(fleet, alice, 0), await begin(fleet, bob, 0)
            asked = call(7, "echo", {"text": "alice's"})
            event_id = events((await alice.post(URL, json=asked, headers=headers(of_alice))).text)[
                0
            ][0]
            for died in (False, True):
                if died:
                    await fleet.workers.pop(0).vanish()
                for worker in range(len(fleet.workers)):
                    at(fleet, worker)
                    for session_id, status in ((of_bob, 400), (of_alice, 404)):
                        again = headers(session_id, last_event_id=event_id)
                        refused = await bob.get(URL, headers=again)
                        assert refused.status_code == status
                        assert "alice's" not in refused.text
                    refused = await bob.post(URL, json=asked, headers=headers(of_alice))
                    assert refused.status_code == 404
                    again = headers(of_alice, last_event_id=event_id)
                    assert "alice's" in (await alice.get(URL, headers=again)).text

    run(backend, scenario)


def test_a_worker_that_ends_is_not_kept_by_a_stream_that_listens(backend: str, kind: str) -> None:
    """It hands its sessions over at once, and the stream ends."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), make=KINDS[kind]) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            at(fleet, 1)
            async with http.stream("GET", URL, headers=headers(session_id)) as answer:
                heard = answer.aiter_text()
                await http.post(URL, json=call(7, "tell", {}), headers=headers(session_id))
                assert "list_changed" in await anext(heard)
                with anyio.fail_after(5):
                    await fleet.workers.pop(0).stop()
                    async for _ in heard:
                        pass
            at(fleet, 0)
            assert fleet.workers[0].ids() == [session_id]
            asked = call(7, "echo", {"text": "there"})
            answer = await http.post(URL, json=asked, headers=headers(session_id))
            assert "there" in answer.text

    run(backend, scenario)
