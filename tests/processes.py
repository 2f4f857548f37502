"""A program in a process of its own, and the lines that it prints, for tests."""

import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import trio

__all__ = ["killed_at_the_end"]


@asynccontextmanager
async def killed_at_the_end(
    command: Sequence[str], *, within: float = 60.0
) -> AsyncIterator[tuple[trio.Process, AsyncGenerator[str, None]]]:
    """Start a program, which is killed at the end; yield it, and the lines that it prints.

    Args:
        command: the program and its arguments.
        within: seconds for the whole block.
    """
    process = await trio.lowlevel.open_process(list(command), stdout=subprocess.PIPE)
    assert process.stdout is not None
    stdout = process.stdout

    async def lines() -> AsyncGenerator[str, None]:
        unread = b""
        async for data in stdout:
            unread += data
            while b"\n" in unread:
                line, _, unread = unread.partition(b"\n")
                yield line.decode()

    try:
        with trio.fail_after(within):
            async with aclosing(lines()) as generator:
                yield process, generator
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await stdout.aclose()
