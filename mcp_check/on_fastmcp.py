"""The same server as the workers' own, made with fastmcp."""

from typing import Any

import anyio
from fastmcp import Context, FastMCP
from fastmcp.server.auth import TokenVerifier
from fastmcp.server.auth.auth import AccessToken
from pydantic import BaseModel

from mcp_check.tools import note, routes
from trio_sessions.mcp import SessionEventStore, SessionRouter

__all__ = ["build"]


class Name(BaseModel):
    """What the user is asked for."""

    name: str


class Users(TokenVerifier):  # type: ignore[misc]  # where it is not installed
    """Takes every token for the name of its user."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """Say who it is."""
        return AccessToken(token=token, client_id="check", scopes=[], subject=token)


async def add(a: int, b: int, ctx: Context) -> int:
    """Add, and tell of the progress."""
    for i in range(3):
        await ctx.report_progress(i, 3)
    return a + b


async def add_many(number: int, ctx: Context) -> int:
    """Tell of the progress many times."""
    for i in range(number):
        await ctx.report_progress(i, number)
    return number


async def echo(text: str) -> str:
    """Say it again."""
    return text


async def greet(ctx: Context) -> str:
    """Ask for a name, and greet."""
    answer = await ctx.elicit("name?", Name)
    return f"hello {answer.data.name}" if answer.action == "accept" else "hello"


async def slow(name: str, seconds: float) -> str:
    """Note that it runs, and take some time."""
    note(name)
    await anyio.sleep(seconds)
    return f"done {name}"


def build(registry: Any) -> Any:
    """Return the application."""
    server = FastMCP("check", auth=Users())
    for tool in (add, add_many, echo, greet, slow):
        server.tool(tool)
    app = server.http_app(event_store=SessionEventStore(registry))
    app.router.routes.extend([*server.http_app(transport="sse").routes, *routes()])
    return SessionRouter(app, registry)
