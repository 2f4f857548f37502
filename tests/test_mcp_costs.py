"""What a call through the worker that does not hold its session costs. Counted, not timed."""

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("mcp")

from instruments import installed
from mcp_fleet import BACKENDS, HEADERS, URL, at, begin, open_fleet, raw, run
from test_mail_costs import Tasks, letters

from trio_sessions.stores.memory import MemoryStore

CALLS = 10


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("json_response", [False, True])
def test_a_call_is_a_letter_there_and_one_back(
    backend: str, folder: str, monkeypatch: pytest.MonkeyPatch, *, json_response: bool
) -> None:
    """By sockets, and none of them in the database; on asyncio Trio starts two tasks for both.

    One runs what was called, and one notes that the call begins.
    """
    for name in ("_GATHER", "_GATHER_BEGINNING"):  # however slow the machine is
        monkeypatch.setattr(f"trio_sessions.mcp._tunnel.{name}", 3600.0)

    async def scenario() -> None:
        store = MemoryStore()
        settings: dict[str, Any] = {"mail_sockets": folder, "cleanup_interval": 1000.0}
        async with (
            open_fleet(backend, lambda: store, json_response=json_response, **settings) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            at(fleet, 1)
            headers = {**HEADERS, "mcp-session-id": session_id}

            async def call(number: int) -> None:
                params = {"name": "echo", "arguments": {"text": str(number)}}
                asked = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
                answer = await http.post(URL, json=asked, headers=headers)
                assert answer.status_code == 200
                assert f'"{number}"' in answer.text

            await call(0)  # which connects
            cores = [
                worker.registry if backend == "trio" else worker.registry._opened().core
                for worker in fleet.workers
            ]
            with letters(*cores) as come:
                if backend == "trio":
                    for number in range(1, CALLS + 1):
                        await call(number)
                else:
                    with installed(Tasks()) as tasks:
                        for number in range(1, CALLS + 1):
                            await call(number)
                    assert tasks.started == 2 * CALLS
            assert len(come) == 2 * CALLS
            assert [worker.store.calls["Post"] for worker in fleet.workers] == [0, 0]

    run(backend, scenario)
