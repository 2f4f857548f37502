"""The gateway's ASGI app as a worker of uvicorn runs it, on the registry under test."""

import importlib
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from gateway_check.common import TABLES, WORKER_HEADER

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]


def build_app() -> App:
    """Return the gateway's ASGI app on the registry under test, for ``uvicorn --factory``."""
    log_statements(os.environ.get("CHECK_STATEMENT_LOG"))
    ours = os.environ["CHECK_REGISTRY"] == "ours"
    module = importlib.import_module("contextforge" if ours else "mcpgateway.main")
    return with_worker_header(module.app)


def with_worker_header(app: App) -> App:
    """Wrap an ASGI app so that each response names the process that gave it."""
    header = (WORKER_HEADER.encode(), str(os.getpid()).encode())

    async def wrapped(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), header]
            await send(message)

        await app(scope, receive, stamped)

    return wrapped


def log_statements(path: str | None) -> None:
    """Append one line to ``path`` for each statement on a table of sessions or messages."""
    if not path:
        return
    from sqlalchemy import Engine, event

    names = tuple(name for tables in TABLES.values() for name in tables)
    log = Path(path).open("a", buffering=1)  # noqa: SIM115 -- as long as the process

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if any(name in statement for name in names):
            log.write(f"[{os.getpid()}] statement: {' '.join(statement.split())}\n")
