"""What the SDK takes, and JSON of a database cannot carry; and ids that nobody was given."""

import json
from typing import Any

import anyio
import httpx2
import pytest

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, HEADERS, INITIALIZE, URL, open_fleet, raw, run, scope_of
from test_mcp_owners import one_store

from trio_sessions.mcp._asgi import once

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"),
]


@pytest.mark.parametrize("json_response", [False, True])
@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_a_beginning_that_cannot_be_kept_leaves_nothing(
    backend: str, number: str, *, json_response: bool
) -> None:
    """The SDK takes numbers that are none in JSON; its client is told that they will not do."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), size=1, json_response=json_response) as fleet,
            raw(fleet) as http,
        ):
            worker = fleet.workers[0]
            experimental = f'"capabilities": {{"experimental": {{"x": {{"y": {number}}}}}}}'
            body = json.dumps(INITIALIZE).replace('"capabilities": {}', experimental)
            answer = await http.post(URL, content=body, headers=HEADERS)
            assert answer.status_code == 400, answer.text
            assert (worker.sdk_sessions, worker.ids()) == (0, [])

    run(backend, scenario)


@pytest.mark.parametrize("json_response", [False, True])
@pytest.mark.parametrize("named", ["x" * 1000, None])
def test_a_session_whose_owner_cannot_be_one_leaves_nothing(
    backend: str, named: str | None, *, json_response: bool
) -> None:
    """What is to name the owner is at fault, or trips over a header that is not there."""

    def whose(scope: Any) -> str:
        if named is None:
            return dict(scope["headers"])[b"authorization"].decode()
        return named

    async def never() -> Any:
        await anyio.sleep_forever()

    async def scenario() -> None:
        async with open_fleet(
            backend, one_store(), size=1, router={"owner": whose}, json_response=json_response
        ) as fleet:
            worker = fleet.workers[0]
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            request = httpx2.Request("POST", URL, json=INITIALIZE, headers=HEADERS)
            receive = once(await request.aread(), never)
            try:
                await worker.router(scope_of(request), receive, send)
            except* (ValueError, KeyError, anyio.ClosedResourceError):  # the SDK tells the session
                pass
            assert {one["status"] for one in sent if "status" in one} <= {500}
            assert (worker.sdk_sessions, worker.ids()) == (0, [])

    run(backend, scenario)
