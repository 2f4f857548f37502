"""The pieces of an answer, as they gather at the worker that makes it."""

from typing import Any

import pytest

pytest.importorskip("mcp")

import anyio
from mcp_fleet import BACKENDS, run

from trio_sessions.mcp._tunnel import _QUEUE, PART_BYTES, _Answer

HEAD = {"type": "http.response.start", "status": 200, "headers": []}
PIECE = b"x" * PART_BYTES


def body(piece: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": piece, "more_body": more}


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_says_too_much_waits_and_so_do_others(backend: str) -> None:
    """Each goes on as soon as there is room; nothing is lost."""

    async def scenario() -> None:
        answer = _Answer(PART_BYTES)
        said: list[int] = []

        async def say(number: int) -> None:
            await answer._send(body(PIECE))
            said.append(number)

        async with anyio.create_task_group() as tasks:
            await answer._send(HEAD)
            for _ in range(_QUEUE + 1):  # one is in the piece that gathers
                await answer._send(body(PIECE))
            for number in range(2):
                tasks.start_soon(say, number)
            await anyio.wait_all_tasks_blocked()
            assert said == []
            size = 0
            while len(said) < 2:
                size += len((await answer.next()).body)
                await anyio.wait_all_tasks_blocked()
            tasks.start_soon(answer._send, body(b"", more=False))
            while not answer.is_over:
                size += len((await answer.next()).body)
        assert size == (_QUEUE + 3) * PART_BYTES

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_waits_for_room_is_told_that_nobody_reads_any_more(backend: str) -> None:
    async def scenario() -> None:
        answer = _Answer(PART_BYTES)
        async with anyio.create_task_group() as tasks:
            for _ in range(_QUEUE + 1):
                await answer._send(body(PIECE))

            async def say() -> None:
                with pytest.raises(anyio.BrokenResourceError):
                    await answer._send(body(PIECE))

            tasks.start_soon(say)
            await anyio.wait_all_tasks_blocked()
            answer.abandon()

    run(backend, scenario)
