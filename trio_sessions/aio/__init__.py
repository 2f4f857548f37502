"""The registry for programs on asyncio: the same methods, as coroutines of asyncio.

`SessionRegistry` runs on asyncio's own loop and on uvloop, with Trio as a guest in the same
thread, and under ``trio_asyncio.open_loop()``. `asyncio_transport` is for Trio programs that
hold transports of asyncio.
"""

from trio_sessions.aio._adapters import Appending, Logs
from trio_sessions.aio._operators import Workers
from trio_sessions.aio._registry import SessionRegistry
from trio_sessions.aio._topics import Topics
from trio_sessions.aio._transport import asyncio_transport

__all__ = ["Appending", "Logs", "SessionRegistry", "Topics", "Workers", "asyncio_transport"]
