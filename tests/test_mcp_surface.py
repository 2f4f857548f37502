"""How a server with a router begins and ends, and what it is told if it is set up wrongly."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx2
import pytest
from soak import longer

pytest.importorskip("mcp")

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.request_state import RequestStateSecurity
from mcp_fleet import (
    BACKENDS,
    HEADERS,
    URL,
    Fleet,
    begin,
    make_server,
    open_fleet,
    raw,
    run,
    through,
)
from mcp_late import needs_fastmcp
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    PROTOCOL_VERSION_META_KEY,
    InputRequiredResult,
)
from starlette.applications import Starlette
from starlette.routing import Mount

from trio_sessions import RegistryClosed, aio
from trio_sessions.mcp import SessionRouter, handlers
from trio_sessions.mcp._sdk import check_seams, find_seat
from trio_sessions.stores.memory import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

MODERN = "2026-07-28"
EXAMPLES = Path(__file__).parent.parent / "examples"


def made_app() -> Any:
    return MCPServer("x").streamable_http_app()


def test_a_registry_without_the_handlers_is_refused() -> None:
    """The message says what to give it."""
    with pytest.raises(ValueError, match=r"handlers=trio_sessions\.mcp\.handlers\(\)"):
        SessionRouter(made_app(), aio.SessionRegistry())


def test_an_application_without_the_sdk_is_refused() -> None:
    """The message says which one it may be."""
    registry = aio.SessionRegistry(handlers=handlers())
    with pytest.raises(ValueError, match="app must be the SDK's"):
        SessionRouter(Starlette(), registry)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("call_timeout", 0, ValueError),
        ("call_timeout", "1", TypeError),
        ("answer_timeout", 0, ValueError),
        ("drain_timeout", float("inf"), ValueError),
        ("idle_timeout", -1.0, ValueError),
        ("max_body_bytes", 0, ValueError),
        ("max_body_bytes", True, TypeError),
    ],
)
def test_a_bad_setting_is_named(name: str, value: Any, error: type[Exception]) -> None:
    """Before anything is served."""
    registry = aio.SessionRegistry(handlers=handlers())
    settings: dict[str, Any] = {name: value}
    with pytest.raises(error, match=name):
        SessionRouter(made_app(), registry, **settings)


def test_a_mounted_application_is_found() -> None:
    """However deep it lies; and the SDK's own timer is off then."""
    inner = made_app()
    outer = Starlette(routes=[Mount("/deep", Starlette(routes=[Mount("/", inner)]))])
    seat = find_seat(inner)
    assert seat is not None
    manager = seat.session_manager
    assert find_seat(outer) is seat
    SessionRouter(outer, aio.SessionRegistry(handlers=handlers()))
    assert manager.session_idle_timeout is None


def test_an_sdk_that_lacks_a_seam_is_named() -> None:
    """With the versions that work."""
    with pytest.raises(ImportError, match=r"mcp>=2\.3,<3.*_server_instances"):
        check_seams(SimpleNamespace(session_idle_timeout=1, stateless=False))


@pytest.mark.parametrize(
    ("module", "whose", "name"),
    [
        pytest.param("mcp.server.subscriptions", "", "ResourceUpdated", marks=longer),
        pytest.param("mcp_types.version", "", "HANDSHAKE_PROTOCOL_VERSIONS", marks=longer),
        ("mcp.server.streamable_http", "StreamableHTTPServerTransport", "is_terminated"),
        pytest.param(
            "mcp.server.streamable_http", "StreamableHTTPServerTransport", "terminate", marks=longer
        ),
        pytest.param(
            "sse_starlette.sse", "AppStatus", "enable_automatic_graceful_drain", marks=longer
        ),
        pytest.param("sse_starlette.sse", "AppStatus", "should_exit", marks=longer),
    ],
)
def test_an_installed_sdk_that_lacks_a_name_is_no_missing_extra(
    module: str, whose: str, name: str
) -> None:
    """It is said at the import, with the versions that work: nothing half works later."""
    code = (
        f"import mcp.server, {module}\n"
        f"delattr({module}{whose and '.' + whose}, {name!r})\n"
        "import trio_sessions\n"
        "try:\n    import trio_sessions.mcp\n"
        "except ImportError as exc: print(type(exc).__name__, exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ImportError trio_sessions.mcp works with mcp>=2.3,<3")
    assert name in done.stdout


@pytest.mark.parametrize("missing", [["mcp"], ["mcp", "anyio", "starlette"]])
def test_without_the_sdk_the_extra_is_named(missing: list[str]) -> None:
    """Nor what it brings; and the rest of the package needs none."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from importlib import metadata\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "import trio_sessions\n"
        "try:\n    import trio_sessions.mcp\n"
        "except trio_sessions.MissingDependency as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'trio_sessions[mcp]'" in done.stdout


@pytest.mark.parametrize("name", ["mcp_server", pytest.param("mcp_fastmcp", marks=needs_fastmcp)])
def test_the_example_opens_and_closes_its_registry(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From startup to shutdown it serves; the registry is closed last."""
    monkeypatch.setitem(os.environ, "DATABASE_URL", f"sqlite:///{tmp_path / 'mcp.db'}")
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"{name}_example", example)
    spec.loader.exec_module(example)

    async def scenario() -> None:
        told: list[str] = []
        into, events = anyio.create_memory_object_stream[dict[str, str]](2)
        started = anyio.Event()

        async def send(message: Any) -> None:
            told.append(message["type"])
            started.set()

        async with into, events, anyio.create_task_group() as tasks:
            await into.send({"type": "lifespan.startup"})
            scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
            tasks.start_soon(example.app, scope, events.receive, send)
            await started.wait()
            assert example.registry.worker_id
            worker: Any = SimpleNamespace(router=example.app, registry=example.registry)
            fleet = Fleet(tasks, [worker])
            async with raw(fleet) as http:
                await begin(fleet, http, 0)
            assert len(await example.registry.get_all_session_ids()) == 1
            await into.send({"type": "lifespan.shutdown"})
        assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        with pytest.raises(RegistryClosed):
            _ = example.registry.worker_id

    run("asyncio", scenario)


def modern(session_id: str, name: str, arguments: Any, **params: Any) -> httpx2.Request:
    """Return a call of a tool in the protocol of 2026-07-28; any session may be named."""
    meta = {PROTOCOL_VERSION_META_KEY: MODERN, CLIENT_CAPABILITIES_META_KEY: {}, "progressToken": 7}
    body = {"name": name, "arguments": arguments, "_meta": meta, **params}
    headers = {
        **HEADERS,
        "mcp-session-id": session_id,
        "mcp-protocol-version": MODERN,
        "mcp-method": "tools/call",
        "mcp-name": name,
    }
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": body}
    return httpx2.Request("POST", URL, json=call, headers=headers)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [("echo", {"text": "it"}, "it"), ("add", {"n": 2}, "step 1"), ("echo", {}, "Field required")],
)
def test_a_protocol_without_sessions_passes_through(
    backend: str, name: str, arguments: Any, says: str
) -> None:
    """Though it names a session of another worker; it is answered as by the SDK alone."""

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            worker = fleet.workers[1]
            asked = worker.store.calls["describe"]
            alone = make_server(worker.bus, worker.calls).streamable_http_app()
            answers = []
            async with alone.router.lifespan_context(alone):
                for app in (worker.router, alone):
                    request = modern(session_id, name, arguments)
                    answer = await through(fleet.tasks, app, request)
                    answers.append((answer.status_code, answer.headers, await answer.aread()))
            assert answers[0] == answers[1]
            status, headers, body = answers[0]
            assert status == 200
            assert says in body.decode()
            assert "mcp-session-id" not in headers
            assert worker.store.calls["describe"] == asked
            assert (worker.sdk_sessions, worker.ids()) == (0, [])

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("are_shared", [True, False])
def test_a_request_state_goes_to_any_worker_if_all_have_the_same_keys(
    backend: str, *, are_shared: bool
) -> None:
    """As the how-to says; with keys of its own each refuses what another one has sealed."""
    keys = iter(["k" * 32, ("k" if are_shared else "x") * 32])

    def make(registry: Any, bus: Any, calls: Any, **_: Any) -> tuple[Any, Any]:
        security = RequestStateSecurity(keys=[next(keys)])
        server = make_server(bus, calls, request_state_security=security)

        async def again(ctx: Context) -> str | InputRequiredResult:
            """Want to be called once more, with what was said then."""
            state = ctx.request_state
            return f"said {state}" if state else InputRequiredResult(request_state="before")

        server.tool()(again)
        return server, server.streamable_http_app()

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store, make=make) as fleet:
            first = await through(fleet.tasks, fleet.workers[0].router, modern("s", "again", {}))
            asked = json.loads(await first.aread())["result"]
            assert asked["resultType"] == "input_required"
            state = asked["requestState"]
            request = modern("s", "again", {}, requestState=state)
            answer = await through(fleet.tasks, fleet.workers[1].router, request)
            told = json.loads(await answer.aread())
            if are_shared:
                assert told["result"]["content"][0]["text"] == "said before"
            else:
                assert told["error"]["data"] == {"reason": "invalid_request_state"}

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_that_is_idle_ends(backend: str) -> None:
    """By the next pass, in the SDK too."""

    async def scenario() -> None:
        store = MemoryStore()
        router = {"idle_timeout": 0.3}
        async with (
            open_fleet(backend, lambda: store, size=1, router=router) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            worker = fleet.workers[0]
            while worker.sdk_sessions:
                await anyio.sleep(0.05)
            while worker.ids():
                await anyio.sleep(0.05)
            assert await worker.registry.describe_session(session_id) is None

    run(backend, scenario)
