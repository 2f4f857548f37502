"""Which async library runs, and what to say to a program on the other one."""

import sniffio

__all__ = ["check_trio", "no_loop_here", "wrong_library"]


def check_trio() -> None:
    """Raise `RuntimeError` unless a task of Trio calls."""
    running = _running()
    if running != "trio":
        raise RuntimeError(
            "this registry is Trio's, and "
            + (f"{running} runs here: " if running else "no Trio runs here: ")
            + (
                "use trio_sessions.aio.SessionRegistry"
                if running == "asyncio"
                else "await it inside trio.run(), or use trio_sessions.aio.SessionRegistry "
                "in an asyncio program"
            )
        )


def wrong_library() -> RuntimeError:
    """Return the error for the registry of asyncio where no loop of asyncio runs."""
    running = _running()
    if running == "trio":
        return RuntimeError(
            "this registry is asyncio's, and trio runs here: use trio_sessions.open_registry"
        )
    return RuntimeError(
        "this registry is asyncio's, and no event loop runs here: await it inside asyncio.run(), "
        "or use trio_sessions.open_registry in a Trio program"
    )


def no_loop_here() -> RuntimeError:
    """Return the error for a call into an open registry of asyncio from a thread without a loop."""
    if _running() == "trio":
        return wrong_library()
    return RuntimeError(
        "no event loop runs in this thread: call this in the thread of the registry's loop, "
        "by loop.call_soon_threadsafe() or asyncio.run_coroutine_threadsafe()"
    )


def _running() -> str | None:
    try:
        return sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return None
