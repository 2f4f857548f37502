"""Whether uvicorn was told to end. It says so to nobody, and waits for open streams first.

sse-starlette, which the SDK streams with, learns of it from uvicorn's handler of signals, and cuts
every stream off at once: also one that would have been answered a moment later, and of which its
client has no event yet to come back with. So that is switched off, as sse-starlette provides for,
and the streams end when their sessions have moved. See docs/decisions/0013-mcp.md.
"""

from typing import Any

from trio_sessions._logging import get_logger
from trio_sessions.mcp._sdk import AppStatus

__all__ = ["end_streams", "take_charge", "was_told"]

logger = get_logger("trio_sessions.mcp")


class _State:
    original: Any = None
    is_in_charge = False
    was_told = False


def take_charge() -> None:
    """Decide from now on when streams end; harmless twice."""
    if _State.is_in_charge or AppStatus.original_handler is None:  # no uvicorn here
        return
    _State.is_in_charge = True
    _State.original = AppStatus.original_handler
    AppStatus.enable_automatic_graceful_drain = False
    AppStatus.original_handler = _hear


def _hear(*args: Any, **options: Any) -> None:
    """Note it; called by sse-starlette's handler of the signal, which is uvicorn's."""
    _State.was_told = True
    _State.original(*args, **options)


def was_told() -> bool:
    """Say whether uvicorn was told to end, in this process."""
    return _State.was_told or AppStatus.should_exit


def end_streams() -> None:
    """Let whatever streams still go on end now, as they would have at once."""
    if _State.was_told:
        AppStatus.should_exit = True
