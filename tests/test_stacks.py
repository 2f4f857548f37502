"""What asyncio's debug mode notes of each thing that is made, for a warning."""

import asyncio
import linecache
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_Loop = asyncio.AbstractEventLoop


@pytest.fixture
def loop() -> Iterator[_Loop]:
    loop = asyncio.SelectorEventLoop()
    loop.set_debug(True)
    yield loop
    loop.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda loop: loop.create_future(),
        lambda loop: asyncio.Future(loop=loop),
        lambda loop: loop.call_soon(print),
        lambda loop: loop.call_later(1.0, print),
        lambda loop: loop.create_task(asyncio.sleep(0)),
    ],
    ids=["future", "future of ours", "callback", "timer", "task"],
)
def test_it_says_who_made_it(
    loop: _Loop, monkeypatch: pytest.MonkeyPatch, make: Callable[[_Loop], Any]
) -> None:
    """And looks for no file before somebody reads it."""
    looked: list[str | None] = []
    with monkeypatch.context() as patch:
        patch.setattr(linecache, "checkcache", looked.append)
        made = make(loop)
    assert looked == []
    assert len(made._source_traceback) <= 4
    assert "lambda loop: " in "".join(traceback.format_list(made._source_traceback))
    if isinstance(made, asyncio.Task):
        loop.run_until_complete(made)


def test_what_prints_a_stack_prints_all_of_it() -> None:
    """As a log with ``stack_info`` does, or a dump when a test takes too long."""
    stack = traceback.format_stack()
    assert len(stack) > 20
    assert "traceback.format_stack()" in stack[-1]
    [last] = traceback.extract_stack(limit=1)
    assert last.line == "[last] = traceback.extract_stack(limit=1)"
