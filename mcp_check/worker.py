"""One worker, as a process: ``python -m mcp_check.worker PORT``, with its settings in CHECK_*."""

import os
import signal
import sys
from typing import Any

import anyio
import trio
import uvicorn
from hypercorn.config import Config
from hypercorn.trio import serve
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from pydantic import AnyHttpUrl, BaseModel

from mcp_check.tools import collect_after, note, routes
from trio_sessions import aio, open_registry
from trio_sessions.mcp import (
    RegistrySubscriptionBus,
    SessionEventStore,
    SessionRouter,
    handlers,
)

GRACE = 15  # seconds for requests when a worker is told to end


class Name(BaseModel):
    """What the user is asked for."""

    name: str


class Users:
    """Takes every token for the name of its user."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """Say who it is."""
        return AccessToken(token=token, client_id="check", scopes=[], subject=token)


def build(registry: Any) -> Any:
    """Return the application; on the SDK alone where there is no registry."""
    url = AnyHttpUrl("http://127.0.0.1")
    server = MCPServer(
        "check",
        subscriptions=RegistrySubscriptionBus(registry) if registry else None,
        auth=AuthSettings(issuer_url=url, resource_server_url=None, required_scopes=[]),
        token_verifier=Users(),
    )

    @server.tool()
    async def add(a: int, b: int, ctx: Context) -> int:
        """Add, and tell of the progress."""
        for i in range(3):
            await ctx.report_progress(i, 3)
        return a + b

    @server.tool()
    async def add_many(number: int, ctx: Context) -> int:
        """Tell of the progress many times."""
        for i in range(number):
            await ctx.report_progress(i, number)
        return number

    @server.tool()
    async def echo(text: str) -> str:
        """Say it again."""
        return text

    @server.tool()
    async def greet(ctx: Context) -> str:
        """Ask for a name, and greet."""
        answer = await ctx.elicit("name?", Name)
        return f"hello {answer.data.name}" if answer.action == "accept" else "hello"

    @server.tool()
    async def slow(name: str, seconds: float) -> str:
        """Note that it runs, and take some time."""
        note(name)
        await anyio.sleep(seconds)
        return f"done {name}"

    @server.tool()
    async def touch(uri: str, ctx: Context) -> str:
        """Tell whoever listens that a resource has changed."""
        await ctx.notify_resource_updated(uri)
        return uri

    store = SessionEventStore(registry) if registry else None
    app = server.streamable_http_app(event_store=store)
    app.router.routes.extend([*server.sse_app().routes, *routes()])  # for old clients; for us
    return SessionRouter(app, registry) if registry else app


def settings() -> dict[str, Any]:
    """Return those of the registry."""
    return {"handlers": handlers(), "mail_sockets": os.environ["CHECK_MAIL_SOCKETS"] or None}


async def serve_on_trio(port: int, url: str) -> None:
    """Serve under Hypercorn until SIGTERM."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout = 5.0
    config.errorlog = None
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_registry(url, **settings()) as registry:
            app = build(registry)

            async def until_told() -> None:
                await anext(signals)
                await app.leave()  # Hypercorn would wait for open streams first

            await serve(app, config, shutdown_trigger=until_told)


def main() -> None:
    """Serve."""
    collect_after(int(os.environ["CHECK_COLLECT_AFTER"]))
    port, url = int(sys.argv[1]), os.environ["CHECK_DATABASE_URL"]
    if os.environ["CHECK_SERVER"] == "hypercorn":
        trio.run(serve_on_trio, port, url)
        return
    registry = aio.SessionRegistry(url, **settings()) if url else None
    make = build
    if os.environ["CHECK_MADE_WITH"] == "fastmcp":
        from mcp_check import on_fastmcp  # it may not be installed

        make = on_fastmcp.build
    uvicorn.run(
        make(registry),
        host="127.0.0.1",
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=GRACE,
    )


if __name__ == "__main__":
    main()
