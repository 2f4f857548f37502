"""What servers of both kinds have besides their tools."""

import gc
import os
from pathlib import Path

from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

__all__ = ["collect_after", "note", "routes"]

_OWN = gc.get_threshold()  # before anybody has changed them


def note(name: str) -> None:
    """Write down that a tool runs."""
    with Path(os.environ["CHECK_RAN"]).open("a") as file:
        file.write(f"{name}\n")


def collect_after(number: int) -> None:
    """Let Python look for garbage after so many new objects; 0: after its own number.

    See docs/howto/mcp-workers.md, "Many sessions".
    """
    gc.set_threshold(*(number, *_OWN[1:]) if number else _OWN)


async def _collect(request: Request) -> JSONResponse:
    collect_after(int(request.query_params["after"]))
    return JSONResponse({"thresholds": gc.get_threshold()})


async def _left(_: Request) -> JSONResponse:
    """Count the sessions that the SDK holds, in its private tables, wherever they are."""
    held = {"sessions": 0, "streams": 0}
    for one in gc.get_objects():
        if issubclass(type(one), StreamableHTTPSessionManager):
            held["sessions"] += len(one._server_instances)  # noqa: SLF001 -- nothing else says it
        elif issubclass(type(one), SseServerTransport):
            held["streams"] += len(one._read_stream_writers)  # noqa: SLF001
    return JSONResponse(held)


def routes() -> list[Route]:
    """Return what `Fleet.ask` asks."""
    return [Route("/collect", _collect), Route("/left", _left)]
