"""An MCP server with any number of workers.

Start as many as you like, on one database, behind any load balancer, without stickiness::

    export DATABASE_URL=postgresql+psycopg://user:password@host/db
    uvicorn mcp_server:app --port 8001 --timeout-graceful-shutdown 15
    uvicorn mcp_server:app --port 8002 --timeout-graceful-shutdown 15

The five lines that are marked make the difference to a server with one worker.
"""

import os
import tempfile
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from trio_sessions.aio import SessionRegistry  # 1
from trio_sessions.mcp import (  # 2
    RegistrySubscriptionBus,
    SessionEventStore,
    SessionRouter,
    handlers,
)

registry = SessionRegistry(  # 3
    os.environ.get("DATABASE_URL", "sqlite:///mcp.db"),
    handlers=handlers(),
    mail_sockets=Path(tempfile.gettempdir(), f"mcp-{os.getuid()}"),  # for workers of one host
)
server = MCPServer("counter", subscriptions=RegistrySubscriptionBus(registry))  # 4


class Name(BaseModel):
    """What the user is asked for."""

    name: str


@server.tool()
async def count(to: int, ctx: Context) -> int:
    """Count, and tell of the progress."""
    for i in range(to):
        await ctx.report_progress(i + 1, to)
    return to


@server.tool()
async def greet(ctx: Context) -> str:
    """Ask for a name, and greet."""
    answer = await ctx.elicit("What is your name?", Name)
    return f"hello {answer.data.name}" if answer.action == "accept" else "hello"


app = SessionRouter(  # 5
    server.streamable_http_app(event_store=SessionEventStore(registry)), registry
)
