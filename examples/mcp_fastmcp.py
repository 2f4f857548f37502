"""A server of fastmcp's with any number of workers; what it needs is what `mcp_server.py` needs.

Start as many as you like, on one database, behind any load balancer, without stickiness::

    pip install 'trio_sessions[mcp,postgresql]' 'fastmcp>=4,<5' uvicorn
    export DATABASE_URL=postgresql+psycopg://user:password@host/db
    uvicorn mcp_fastmcp:app --port 8001 --timeout-graceful-shutdown 15
    uvicorn mcp_fastmcp:app --port 8002 --timeout-graceful-shutdown 15
"""

import os
import tempfile
from pathlib import Path

from fastmcp import Context, FastMCP

from trio_sessions.aio import SessionRegistry
from trio_sessions.mcp import SessionEventStore, SessionRouter, handlers

registry = SessionRegistry(
    os.environ.get("DATABASE_URL", "sqlite:///mcp.db"),
    handlers=handlers(),
    mail_sockets=Path(tempfile.gettempdir(), f"mcp-{os.getuid()}"),  # for workers of one host
)
server = FastMCP("counter")  # without a name each worker would have another one


async def count(to: int, ctx: Context) -> int:
    """Count, and tell of the progress."""
    for i in range(to):
        await ctx.report_progress(i + 1, to)
    return to


server.tool(count)
app = SessionRouter(server.http_app(event_store=SessionEventStore(registry)), registry)
