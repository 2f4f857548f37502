"""The examples: real servers and real clients, and what is left when either is killed.

Sync but for one: what is looked at runs in other processes, and each wait has a deadline.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import runpy
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import trio
import trio.testing
from backdoors import DatabaseBackdoor
from httpx_sse import connect_sse
from lending import make_schema
from soak import longer
from trio_websocket import ConnectionClosed, open_websocket_url

from trio_sessions import open_registry
from trio_sessions.testing import FakeTransport

ROOT = Path(__file__).parent.parent
DEADLINE = 90.0  # seconds for anything that should come soon
TTL = 3.0  # seconds
INTERVAL = 0.5  # seconds between two passes
NO_TLS = False  # loading certificates would take longer than any of the requests

UVICORN = "uvicorn fastapi_gateway:app --workers 2 --port {port} --loop"
CHAT = "uvicorn chat:app --workers 2 --port {port} --loop"
HYPERCORN = "hypercorn -k trio --graceful-timeout 1 --bind 127.0.0.1:{port} trio_gateway:app"
# In its only process. The how-to, below, runs it as it is by default: another one watches over it.
IN_ONE_PROCESS = f"{HYPERCORN} --workers 0"
GATEWAYS = {
    "asyncio, sqlite": [f"{UVICORN} asyncio"],
    "uvloop, postgresql": [f"{UVICORN} uvloop"],
    "trio, sqlite": [IN_ONE_PROCESS, IN_ONE_PROCESS],
    "trio, watched over, sqlite": [HYPERCORN, HYPERCORN],  # it ends its second worker by force
}
CHATS = {
    "chat, asyncio, sqlite": [f"{CHAT} asyncio"],
    "chat, uvloop, postgresql": [f"{CHAT} uvloop"],
}
# The same application with the other loop and the other database is left to the soak, and most of
# what is looked at on Trio: its how-to, below, runs in each.
ALL_GATEWAYS = [
    pytest.param("asyncio, sqlite", marks=longer),
    "uvloop, postgresql",
    pytest.param("trio, sqlite", marks=longer),
]
ALL_CHATS = [pytest.param("chat, asyncio, sqlite", marks=longer), "chat, uvloop, postgresql"]

TROUBLE = re.compile(r"Traceback|never awaited|Task was destroyed|ResourceWarning|CRITICAL")
# uvicorn leaves to the end of its processes: the socket it listens on, and a standard input.
NO_TROUBLE = re.compile(
    r"ResourceWarning: unclosed "
    r"(<socket.* laddr=\('127\.0\.0\.1', \d+\)>|file <_io\.TextIOWrapper name=0 .*>)"
)

CLIENT = """
import sys, httpx, httpx_sse
with httpx.Client(timeout=None) as http, httpx_sse.connect_sse(http, "GET", sys.argv[1]) as source:
    for event in source.iter_sse():
        print(event.data, flush=True)
"""


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def pid_of(worker: str) -> int:
    """Return the process that a fresh worker_id names."""
    return int(worker.rsplit("-", 2)[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """One server with its workers, in a process group of their own."""

    def __init__(self, command: list[str], folder: Path, port: int, **environment: str) -> None:
        self._port = port
        self.url = f"http://127.0.0.1:{port}"
        self.pids: set[int] = set()
        self._errors = folder / f"stderr of {port}"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"} | environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def is_up(self) -> bool:
        assert self._process.poll() is None, self.errors()
        with contextlib.suppress(httpx.TransportError, ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self._port)).close()  # a request takes longer
            url = f"{self.url}/openapi.json"  # asks no registry, and Starlette says 404
            httpx.get(url, timeout=DEADLINE, verify=NO_TLS)
            return True
        return False

    def errors(self) -> str:
        return self._errors.read_text("utf-8")

    def terminate(self) -> None:
        """Ask it to end, as a service manager does."""
        self._process.terminate()

    def stop(self) -> None:
        """Interrupt it as a terminal does, or kill it; then nothing may be left of it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(DEADLINE)
        finally:
            self._process.kill()
            self._process.wait()
            errors = self.errors()
            self.pids |= {int(pid) for pid in re.findall(r"server process \[(\d+)\]", errors)}
            left = {pid for pid in self.pids if self._is_alive(pid)}
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, "workers outlived their server"
        assert not TROUBLE.search(NO_TROUBLE.sub("", errors)), errors

    def wait(self) -> None:
        self._process.wait(DEADLINE)

    def _is_alive(self, pid: int) -> bool:
        """Say whether the process lives and is of this server's session, not another's."""
        try:
            return os.getsid(pid) == self._process.pid
        except ProcessLookupError:
            return False


class Client:
    """Holds one stream of events."""

    def __init__(self, server: Server, path: str = "/sse", *, buffer: int | None = None) -> None:
        options = [] if buffer is None else [(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)]
        self._stack = contextlib.ExitStack()
        transport = httpx.HTTPTransport(verify=NO_TLS, socket_options=options)
        http = self._stack.enter_context(httpx.Client(transport=transport, timeout=DEADLINE))
        source = self._stack.enter_context(connect_sse(http, "GET", f"{server.url}{path}"))
        self._network = source.response.extensions["network_stream"]
        self._events = source.iter_sse()
        hello = next(self._events)
        assert hello.event == "session"
        self.id, self.worker = hello.json().get("session", path), hello.json()["worker"]
        server.pids.add(pid_of(self.worker))

    def receive(self) -> Any:
        event = next(self._events)
        assert event.event == "message"
        return event.json()

    def close(self) -> None:
        self._stack.close()

    def reset(self) -> None:
        """Drop the connection without a farewell."""
        raw = self._network.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


class Gateway:
    """Two workers on one database: of one server, or of two."""

    def __init__(self, servers: list[Server], database: DatabaseBackdoor) -> None:
        self.servers = servers
        self.database = database
        self._turns = itertools.cycle(servers)
        self._stack = contextlib.ExitStack()
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(limits=limits, timeout=DEADLINE, verify=NO_TLS)

    def sessions(self) -> dict[str, str]:
        return self.database.rows()

    def connect(self, server: Server | None = None, *path: str, **options: Any) -> Client:
        client = Client(server or self.servers[0], *path, **options)
        self._stack.callback(client.close)
        return client

    def connect_to_each(self, *paths: str) -> list[Client]:
        """Return a client of each worker. Who accepts a connection is up to the kernel."""
        clients: dict[str, Client] = {}
        spare: set[str] = set()

        def connect() -> bool:
            for server in self.servers:
                client = self.connect(server, *paths[len(clients) :][:1])
                if client.worker in clients:
                    client.close()
                    spare.add(client.id)
                else:
                    clients[client.worker] = client
            return len(clients) == 2

        wait_until(connect)
        wait_until(lambda: spare.isdisjoint(self.sessions()))  # seen to have left
        return list(clients.values())

    def post(self, client: Client, message: str, *expected: int) -> int:
        """Post a message on a new connection, to whichever worker takes it."""
        answers: list[httpx.Response] = []

        def post() -> bool:
            url = f"{next(self._turns).url}/messages/{client.id}"
            headers = {"content-type": "application/json"}
            with contextlib.suppress(httpx.TransportError):  # this worker has been killed
                answers.append(self.http.post(url, content=message, headers=headers))
            return bool(answers)

        wait_until(post)
        assert answers[0].status_code in expected, answers[0].text
        return answers[0].status_code

    def exchange(self, client: Client, message: Any) -> None:
        self.post(client, json.dumps(message), 202)
        assert client.receive() == {"echo": message}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Return what each worker counts; needs both of them."""
        counts: dict[str, dict[str, Any]] = {}

        def ask() -> bool:
            for server in self.servers:
                answer = self.http.get(f"{server.url}/statistics").json()
                counts.setdefault(answer["worker_id"], answer)
            return len(counts) == 2

        wait_until(ask)
        return counts

    def count(self, name: str) -> int:
        """Return what the worker counts that has counted least."""
        return min(int(counts[name]) for counts in self.statistics().values())

    def disconnect_clients(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def open_gateway(name: str, url: sa.URL, folder: Path) -> Iterator[Gateway]:
    environment = {
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "SESSION_TTL": str(TTL),
        "CLEANUP_INTERVAL": str(INTERVAL),
        "PYTHONPATH": str(ROOT / "examples"),
    }
    with contextlib.ExitStack() as stack:
        servers = []
        for command in (GATEWAYS | CHATS)[name]:
            port = free_port()
            argv = [sys.executable, "-m", *command.format(port=port).split()]
            servers.append(Server(argv, folder, port, **environment))
            stack.callback(servers[-1].stop)
        for server in servers:
            wait_until(server.is_up)
        database = DatabaseBackdoor(url)
        stack.callback(database.close)
        gateway = Gateway(servers, database)
        stack.callback(gateway.http.close)
        yield gateway


def url_for(request: pytest.FixtureRequest, folder: Path, schema: str) -> sa.URL:
    if request.param.endswith("sqlite"):
        return sa.make_url(f"sqlite:///{folder / 'sessions.db'}")
    url: sa.URL = request.getfixturevalue(schema)
    return url


@pytest.fixture(scope="module", params=ALL_GATEWAYS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    url = url_for(request, folder, "module_schema")
    with open_gateway(request.param, url, folder) as gateway:
        yield gateway
        if len(gateway.servers) == 1:
            gateway.connect_to_each()
            stop(gateway)
            gateway.disconnect_clients()


def stop(gateway: Gateway) -> None:
    """Terminate it as a service manager does: the sessions that its workers hold go with them."""
    for server in gateway.servers:
        server.terminate()
    for server in gateway.servers:
        server.wait()
    assert gateway.sessions() == {}


@pytest.fixture
def gateway(running: Gateway) -> Iterator[Gateway]:
    """A gateway without sessions, before and after."""
    assert running.sessions() == {}
    yield running
    running.disconnect_clients()
    wait_until(lambda: running.sessions() == {})


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway for a test that destroys it."""
    url = sa.make_url(f"sqlite:///{tmp_path / 'sessions.db'}")
    with open_gateway("trio, watched over, sqlite", url, tmp_path) as gateway:
        yield gateway
        gateway.disconnect_clients()


def held_by(clients: list[Client]) -> dict[str, str]:
    return {client.id: client.worker for client in clients}


def test_clients_connect_exchange_and_leave(gateway: Gateway) -> None:
    """Each gets its own echoes, whichever worker takes its messages; who has left gets none."""
    clients = gateway.connect_to_each()
    assert gateway.sessions() == held_by(clients)
    for client in clients:
        messages: list[Any] = [{"text": "two\n\nlines"}, None, [], "", 0]
        for message in messages:
            gateway.exchange(client, message)
        for number in range(20):  # not all of them are posted to the worker that holds it
            gateway.exchange(client, number)
        gateway.post(client, "NaN", 422)
    stays, goes = clients
    goes.close()
    wait_until(lambda: gateway.sessions() == held_by([stays]))
    gateway.post(goes, "1", 404)
    gateway.exchange(stays, "still here")


def test_probes_are_answered(gateway: Gateway) -> None:
    """Each worker is alive and ready, and says what it knows of itself: no id of a session."""
    client = gateway.connect()
    for server in gateway.servers:
        for path in ("/livez", "/readyz"):
            answer = gateway.http.get(f"{server.url}{path}")
            assert answer.status_code == 200, answer.text
            assert answer.json()["database_answers"] is True
            assert client.id not in answer.text


def test_killed_clients_are_removed_and_nobody_else(gateway: Gateway) -> None:
    """A killed process and reset connections lose their sessions; the next passes take no more."""
    survivors, dropped = gateway.connect_to_each(), gateway.connect_to_each()
    command = [sys.executable, "-c", CLIENT, f"{gateway.servers[0].url}/sse"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        hello = json.loads(process.stdout.readline())
        killed = {hello["session"]: hello["worker"]}
        assert gateway.sessions() == held_by([*survivors, *dropped]) | killed
        process.kill()
    for client in dropped:
        client.reset()
    wait_until(lambda: gateway.sessions() == held_by(survivors))
    passes = gateway.count("passes")
    wait_until(lambda: gateway.count("passes") > passes + 2)
    assert gateway.sessions() == held_by(survivors)
    for client in survivors:
        gateway.exchange(client, "still here")


def test_a_client_that_does_not_read_is_removed_by_the_pass(gateway: Gateway) -> None:
    """Its connection stays open; its transport says that it has given it up."""
    deaf, others = gateway.connect(buffer=4096), gateway.connect_to_each()
    before = gateway.statistics()[deaf.worker]["removed_disconnected"]
    for _ in range(8):  # as much as the buffers of the connection take
        gateway.post(deaf, json.dumps("x" * 1_000_000), 202)
    wait_until(lambda: gateway.post(deaf, "1", 202, 404) == 404)
    wait_until(lambda: gateway.sessions() == held_by(others))
    wait_until(lambda: gateway.statistics()[deaf.worker]["removed_disconnected"] == before + 1)


@pytest.mark.parametrize("running", ["uvloop, postgresql"], indirect=True)
def test_a_websocket_is_a_session_too(gateway: Gateway) -> None:
    """It echoes what its client says, and what others post to it; it ends with its client."""
    [server] = gateway.servers
    url = f"{server.url}/ws".replace("http", "ws")

    async def talk(last: str) -> None:
        async with open_websocket_url(url) as client:
            hello = json.loads(await client.get_message())
            server.pids.add(pid_of(hello["worker"]))
            await client.send_message('["said"]')
            assert await client.get_message() == '{"echo":["said"]}'
            post = partial(gateway.http.post, f"{server.url}/messages/{hello['session']}", json=1)
            assert (await trio.to_thread.run_sync(post)).status_code == 202
            assert await client.get_message() == '{"echo":1}'
            await client.send_message(last)
            if last == "no JSON":
                with pytest.raises(ConnectionClosed) as closed:
                    await client.get_message()
                assert closed.value.reason is not None
                assert closed.value.reason.code == 1000
            await trio.aclose_forcefully(client._stream)  # a client leaves that to its server

    for last in ("1", "no JSON"):
        trio.run(talk, last)
        wait_until(lambda: gateway.sessions() == {})


@pytest.mark.parametrize("running", ["uvloop, postgresql"], indirect=True)
def test_an_outage_of_the_database_costs_nobody_the_session(gateway: Gateway) -> None:
    """Nobody can tell who holds what is elsewhere, and nobody expires, however long it lasts."""
    clients = gateway.connect_to_each()
    with gateway.database.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE trio_sessions IN ACCESS EXCLUSIVE MODE")
        ends = time.monotonic() + TTL + INTERVAL
        url = f"{gateway.servers[0].url}/messages/nobody"
        assert gateway.http.post(url, json=1).status_code == 503
        wait_until(lambda: time.monotonic() > ends)
    passes = gateway.count("passes")
    wait_until(lambda: gateway.count("passes") > passes + 2)
    assert gateway.sessions() == held_by(clients)
    for client in clients:
        gateway.exchange(client, "still here")


def kill_a_worker(gateway: Gateway) -> set[str]:
    """Kill one of two that hold sessions, wait for what follows, and return both."""
    started = time.monotonic()
    clients = gateway.connect_to_each() + gateway.connect_to_each()
    dead, other = clients[0].worker, clients[1].worker
    kept = [client for client in clients if client.worker == other]
    assert gateway.sessions() == held_by(clients)
    os.kill(pid_of(dead), signal.SIGKILL)
    wait_until(lambda: gateway.sessions() == held_by(kept))
    assert time.monotonic() > started + TTL
    for client in kept:
        gateway.exchange(client, "still here")
    gateway.post(clients[0], "1", 404)
    return {dead, other}


@pytest.mark.parametrize("running", ALL_GATEWAYS[:2], indirect=True)
def test_a_killed_worker_loses_its_sessions_and_the_other_keeps_its(gateway: Gateway) -> None:
    """The dead worker's rows go after the TTL, and uvicorn starts another worker.

    The others' go when the whole gateway is stopped, after the last test of it: see `running`.
    """
    both = kill_a_worker(gateway)
    replaced = gateway.connect_to_each()
    assert {client.worker for client in replaced} - both


@longer
def test_a_killed_server_loses_its_sessions_and_the_other_keeps_its(own_gateway: Gateway) -> None:
    """The same where nobody starts another worker: Hypercorn's servers, of one worker each."""
    kill_a_worker(own_gateway)
    stop(own_gateway)


# ---- the chat ----


@pytest.fixture(scope="module")
def chat_schema(administrator: sa.Engine) -> Iterator[sa.URL]:
    """Not the gateways': they have another `session_ttl`, and would sweep the chat's sessions."""
    with make_schema(administrator) as url:
        yield url


@pytest.fixture(scope="module", params=ALL_CHATS)
def running_chat(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("chat")
    url = url_for(request, folder, "chat_schema")
    with open_gateway(request.param, url, folder) as chat:
        yield chat


@pytest.fixture
def chat(running_chat: Gateway) -> Iterator[Gateway]:
    """A chat in which nobody is, before and after."""
    assert running_chat.sessions() == {}
    yield running_chat
    running_chat.disconnect_clients()
    wait_until(lambda: running_chat.sessions() == {})


def say(chat: Gateway, sender: str, to: str, text: str) -> int:
    """Say something on a new connection, to whichever worker takes it."""
    words = {"from": sender, "to": to, "text": text}
    return chat.http.post(f"{chat.servers[0].url}/say", json=words).status_code


def test_all_that_is_said_arrives_while_a_listener_is_killed(chat: Gateway) -> None:
    """In the order of each sender, once, to whom it was said; the killed one is not here then."""
    names = ["alice", "Çelik"]
    on_each = chat.connect_to_each(*(f"/sse?name={name}" for name in names))
    listeners = dict(zip(names, on_each, strict=True))
    command = [sys.executable, "-c", CLIENT, f"{chat.servers[0].url}/sse?name=mortal"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as mortal:
        assert mortal.stdout is not None
        mortal.stdout.readline()
        answers: list[int] = []

        def send(sender: str) -> None:
            for number in range(15):
                answers.append(say(chat, sender, "mortal", str(number)))
                if number == 5:
                    mortal.kill()
                for name in names:
                    assert say(chat, sender, name, f"{name} {number}") == 202

        with ThreadPoolExecutor() as senders:
            list(senders.map(send, ["s-1", "s-2", "s-3"]))
        assert 202 in answers
        assert set(answers) <= {202, 404}
    wait_until(lambda: say(chat, "s-1", "mortal", "?") == 404)
    for name, listener in listeners.items():
        heard: dict[str, list[str]] = {"s-1": [], "s-2": [], "s-3": []}
        for _ in range(15 * 3):
            said = listener.receive()
            heard[said["from"]].append(said["text"])
        expected = [f"{name} {number}" for number in range(15)]
        assert heard == dict.fromkeys(heard, expected)


def test_a_name_moves_with_its_newest_stream(chat: Gateway) -> None:
    """On either worker the older stream does not take the name away when it ends."""
    newest = chat.connect(None, "/sse?name=alice")
    for _ in range(5):
        older, newest = newest, chat.connect(None, "/sse?name=alice")
        older.close()
        heard = threading.Event()

        def keep_saying(heard: threading.Event = heard) -> None:
            while not heard.is_set():  # the first words may still go to the older one
                assert say(chat, "bob", "alice", "hi") == 202

        with ThreadPoolExecutor() as senders:
            saying = senders.submit(keep_saying)
            try:
                assert newest.receive() == {"from": "bob", "text": "hi"}
            finally:
                heard.set()
            saying.result()
    assert "EventSource" in chat.http.get(chat.servers[0].url).text
    bad: list[Any] = [{"to": "a", "text": ""}, {"from": "a", "to": "b\0", "text": ""}, []]
    for words in bad:
        assert chat.http.post(f"{chat.servers[0].url}/say", json=words).status_code == 422


def test_a_stream_that_leaves_does_not_remove_the_one_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same name, on the same worker, at the same moment."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'chat.db'}")
    chat = runpy.run_path("examples/chat.py")

    async def open_stream(name: str) -> Any:
        stream = chat["Listener"]().stream(name)
        hello = await anext(stream)
        assert hello.event == "session"
        return stream

    async def replace(name: str) -> None:
        older = await open_stream(name)
        newer, _ = await asyncio.gather(open_stream(name), older.aclose())
        await newer.aclose()

    async def main() -> None:
        async with chat["registry"]:
            for _ in range(3):
                await asyncio.gather(*(replace(f"n{number}") for number in range(20)))
            assert await chat["registry"].get_all_session_ids() == []

    asyncio.run(main())


async def test_a_stream_of_the_trio_gateway_removes_its_own_session_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the one that has its id since, as where a session was taken over."""
    gateway = runpy.run_path("examples/trio_gateway.py")
    newer = FakeTransport()

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()

    async with open_registry() as registry, trio.open_nursery() as nursery:
        monkeypatch.setattr("secrets.token_urlsafe", lambda: "s")
        ended = trio.Event()

        async def stream() -> None:
            response = gateway["SessionResponse"](registry)
            await response({"type": "http"}, trio.sleep_forever, send)
            ended.set()

        nursery.start_soon(stream)
        await trio.testing.wait_all_tasks_blocked()
        older = await registry.get_session("s")
        await registry.add_session("s", newer)
        with trio.fail_after(DEADLINE):
            await ended.wait()
        assert older is not None
        assert await registry.get_session("s") is newer


# ---- how-to ----


@contextlib.contextmanager
def shell(command: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["sh", "-c", command],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("document", ["asyncio-gateway", "trio-app"])
def test_the_commands_of_the_howto_run_as_written(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server starts, its client gets a session, and the message comes back as printed."""
    if shutil.which("curl") is None:
        pytest.skip("the how-to uses curl")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    port = free_port()
    text = (ROOT / "docs/howto" / f"{document}.md").read_text("utf-8").replace("8000", str(port))
    serve, listen, post = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [printed] = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    server = Server(["sh", "-c", serve], tmp_path, port)
    try:
        wait_until(server.is_up)
        with shell(listen, tmp_path) as listening:
            assert listening.stdout is not None
            assert listening.stdout.readline() == "event: session\n"
            hello = json.loads(listening.stdout.readline().removeprefix("data: "))

            with shell(post, tmp_path, SESSION=hello["session"]) as posting:
                answer, _ = posting.communicate(timeout=DEADLINE)
            assert answer in {"", "null"}, answer
            assert listening.stdout.readline() == "\n"
            received = [listening.stdout.readline() for _ in printed.splitlines()]
            assert "".join(received) == printed
        with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as rows:
            count = "SELECT count(*) FROM trio_sessions"
            wait_until(lambda: rows.execute(count).fetchone() == (0,))
    finally:
        server.stop()
