"""MCP servers with any number of workers.

`SessionRouter` stands in front of the application of an MCP server, and passes each request to the
worker that holds its session. With `SessionEventStore`, clients are sent again what they missed,
after the death of a worker, too. `RegistrySubscriptionBus` tells the clients of all workers what
has changed at one. `handlers` is what the registry must be made with::

    registry = SessionRegistry(url, handlers=handlers())
    server = MCPServer("mine", subscriptions=RegistrySubscriptionBus(registry))
    ...
    app = SessionRouter(
        server.streamable_http_app(event_store=SessionEventStore(registry)), registry
    )

It needs the MCP SDK, which the extra ``mcp`` brings.

Layers, lower never imports higher::

    _router                        what a server is given
    _lifespan | _moving            how it begins and ends
    _places | _beginning | _here   where sessions are; how they begin; who answers for those here
    _manager                       the SDK's sessions, whose manager may be made late
    _sse                           posts of old clients, and the streams that they belong to
    _forwarding | _bus             through the tunnel to others, and to all
    _tunnel                        the tunnel's other end
    _held | _events | _sse_stream  a session that is held here, and what was said in it
    _wire | _replay | _identity    requests as JSON; a beginning said again; whose a session is
    _runs | _exit                  what must not be run twice; when the server ends
    _streams | _outlet             fastmcp's names of streams; where a replay is written
    _asgi | _conversation          headers and bodies; in which session a task is
    _contracts | _sdk              the registry, and the SDK, as this package needs them
"""

from trio_sessions.mcp import _sdk  # noqa: F401 -- before anything else: it says what is missing
from trio_sessions.mcp._bus import RegistrySubscriptionBus
from trio_sessions.mcp._events import SessionEventStore
from trio_sessions.mcp._router import SessionRouter
from trio_sessions.mcp._tunnel import handlers

__all__ = ["RegistrySubscriptionBus", "SessionEventStore", "SessionRouter", "handlers"]
