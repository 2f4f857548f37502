"""What is done to the workers, and what is seen of it."""

import json
import signal
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
import sqlalchemy as sa
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError

from mcp_check.fleet import OLD_URL, URL, Fleet, connect, connect_as_of_old, raw

HEADERS = {
    "accept": "application/json, text/event-stream",
    "content-type": "application/json",
    "mcp-protocol-version": "2025-11-25",
}
BEGIN = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "check", "version": "1"},
    },
}
BEGUN = {"jsonrpc": "2.0", "method": "notifications/initialized"}
NOT_FOUND = 404
GRACE = 10.0  # seconds; the server would wait for 15 for a stream that stays
ERRORS = (MCPError, httpx2.HTTPError, TimeoutError, BaseExceptionGroup, AssertionError)


@dataclass
class Seen:
    """What one case has shown: whether it holds, and in words."""

    facts: list[tuple[bool, str]] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    """Medians, seconds."""

    def note(self, holds: bool, text: str) -> None:  # noqa: FBT001 -- a fact is true or not
        """Note a promise."""
        self.facts.append((holds, text))


@dataclass
class Count:
    """How many were answered, of how many."""

    asked: int = 0
    answered: int = 0
    why: dict[str, int] = field(default_factory=dict)

    def lose(self, error: BaseException) -> None:
        """Note why one was lost."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = f"{type(error).__name__}: {error}"[:90]
        self.why[text] = self.why.get(text, 0) + 1

    def __str__(self) -> str:
        """Return it for people."""
        reasons = "".join(f"; {n} x {why}" for why, n in self.why.items())
        return f"{self.answered} of {self.asked} answered{reasons}"


async def calls(
    fleet: Fleet, seen: Seen, *, clients: int, each: int, are_old: bool = False
) -> None:
    """Let clients call, by chance at either worker: with progress, and with elicitation.

    Args:
        fleet: of workers.
        seen: what is noted.
        clients: how many.
        each: calls of each.
        are_old: they have streams of the SSE transport.
    """
    count = Count()

    async def ask(session: ClientSession, number: int) -> None:
        for i in range(each):
            try:
                with anyio.fail_after(10):
                    if i % 5 == 0:
                        answer = await session.call_tool("greet", {})
                        assert f"hello user{number}" in str(answer.content)
                    else:
                        answer = await session.call_tool("add", {"a": i, "b": number})
                        assert answer.structured_content == {"result": i + number}
                    count.answered += 1
            except ERRORS as exc:
                count.lose(exc)

    async def one(number: int) -> None:
        count.asked += each
        try:
            with anyio.fail_after(20 + 10 * each):
                if are_old:
                    async with connect_as_of_old(fleet, f"user{number}") as old:
                        await ask(old, number)
                else:
                    async with connect(fleet, f"user{number}") as (session, _):
                        await ask(session, number)
        except ERRORS as exc:
            count.lose(exc)

    async with anyio.create_task_group() as tasks:
        for number in range(clients):
            tasks.start_soon(one, number)
    whose = "of old clients " if are_old else ""
    seen.note(count.answered == count.asked, f"calls {whose}by chance: {count}")


async def speed(fleet: Fleet, seen: Seen, *, rounds: int) -> None:
    """Take the time of a call at the session's worker, and through the other one."""
    here, other = fleet.workers[:2]
    async with connect(fleet, only=here) as (session, balancer):
        for name, worker in (("own worker", here), ("other worker", other)):
            balancer.only = worker
            times = []
            used = 0.0
            try:
                for i in range(rounds + 3):
                    if i == 3:  # noqa: PLR2004 -- the first are not counted
                        used = fleet.processor_time()
                    began = time.perf_counter()
                    await session.call_tool("echo", {"text": "x"})
                    times.append(time.perf_counter() - began)
            except ERRORS:
                pass
            if len(times) == rounds + 3:
                seen.times[name] = statistics.median(times[3:])
                seen.times[f"{name}, processor"] = (fleet.processor_time() - used) / rounds
        balancer.only = here


async def isolation(fleet: Fleet, seen: Seen) -> None:
    """Let bob try what is alice's."""
    async with raw(fleet, "alice") as (alice, at), raw(fleet, "bob") as (bob, bob_at):
        at.only = fleet.workers[0]
        session_id = await begin(alice)
        answer = await alice.post(URL, json=call(1, "echo", text="secret"), headers=of(session_id))
        event_id = event_ids(answer.text)[0]
        bob_session = await begin(bob)
        statuses = set()
        leaked = False
        for worker in fleet.workers:
            bob_at.only = worker
            for headers in (
                of(session_id),
                of(session_id, event_id),
                of(bob_session, event_id),
            ):
                got = await bob.get(URL, headers=headers)
                statuses.add(got.status_code)
                leaked |= "secret" in got.text
            got = await bob.post(URL, json=call(2, "echo", text="x"), headers=of(session_id))
            statuses.add(got.status_code)
            got = await bob.delete(URL, headers=of(session_id))
            statuses.add(got.status_code)
        seen.note(
            statuses <= {400, 403, 404} and not leaked,
            f"bob with alice's session and event ids: statuses {sorted(statuses)}"
            + (", and reads her answer" if leaked else ""),
        )
        await alice.delete(URL, headers=of(session_id))
        bob_at.only = None
        await bob.delete(URL, headers=of(bob_session))


async def death(fleet: Fleet, seen: Seen, *, within: float) -> None:
    """Kill a worker by SIGKILL: what it had answered is replayed, what it ran is not run again."""
    dying, other = fleet.workers[:2]
    async with raw(fleet, "alice") as (alice, at), connect(fleet, only=dying) as (session, by):
        at.only = dying
        session_id = await begin(alice)
        at.only = other  # through the tunnel
        answered = await first_event(
            alice, session_id, call(1, "slow", name="answered", seconds=0.5)
        )
        running = await first_event(alice, session_id, call(2, "slow", name="running", seconds=120))
        await anyio.sleep(2.0)
        await session.call_tool("echo", {"text": "x"})
        await fleet.end(dying, signal.SIGKILL)
        fleet.start()
        await fleet.wait(fleet.workers[-1])
        by.only = at.only = None
        began = time.monotonic()
        count = Count(asked=1)
        try:
            with anyio.fail_after(within):
                answer = await session.call_tool("add", {"a": 1, "b": 2})
                count.answered += answer.structured_content == {"result": 3}
        except ERRORS as exc:
            count.lose(exc)
        took = time.monotonic() - began
        seen.note(
            count.answered == 1, f"a call to a session of the killed worker: {count}, {took:.1f} s"
        )
        texts = []
        for event_id in (answered, running):
            if not event_id:
                texts.append("")
                continue
            try:
                with anyio.fail_after(within):
                    got = await alice.get(URL, headers=of(session_id, event_id))
                    texts.append(got.text)
            except ERRORS as exc:
                texts.append(repr(exc))
        seen.note("done answered" in texts[0], "what the killed worker had answered is replayed")
        ran = fleet.ran.read_text().split() if fleet.ran.exists() else []
        seen.note(
            "not run again" in texts[1] and ran.count("running") == 1,
            f"what it was running is said to be lost, and has run {ran.count('running')} time(s)",
        )
        await alice.delete(URL, headers=of(session_id))


async def restart(fleet: Fleet, seen: Seen, *, clients: int) -> None:
    """Restart all workers by SIGTERM, one after the other, while clients go on."""
    count = Count()
    goes_on = True

    async def one(number: int) -> None:
        try:
            async with connect(fleet, f"user{number}") as (session, _):
                i = 0
                while goes_on:
                    i += 1
                    count.asked += 1
                    try:
                        with anyio.fail_after(60):
                            answer = await session.call_tool("add", {"a": i, "b": number})
                            assert answer.structured_content == {"result": i + number}
                        count.answered += 1
                    except ERRORS as exc:
                        count.lose(exc)
                    await anyio.sleep(0.05)
        except ERRORS as exc:
            count.lose(exc)

    slowest = 0.0
    async with anyio.create_task_group() as tasks:
        for number in range(clients):
            tasks.start_soon(one, number)
        await anyio.sleep(1)
        for worker in list(fleet.workers):
            slowest = max(slowest, await fleet.end(worker, signal.SIGTERM, notice=0.5))
            await fleet.wait(fleet.start())
            await anyio.sleep(1)
        goes_on = False
    seen.note(
        count.answered == count.asked and not count.why,
        f"rolling restart by SIGTERM, at most {slowest:.1f} s each: {count}",
    )


async def old_stream(fleet: Fleet, seen: Seen) -> None:
    """End a worker by SIGTERM that has a stream of an old client: it cannot move, nor stay."""
    ending, other = fleet.workers[:2]
    async with raw(fleet, "alice", ending) as (alice, at):
        async with alice.stream("GET", OLD_URL) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            url = URL.removesuffix("/mcp") + (await anext(lines)).removeprefix("data: ")
            at.only = other
            took = 0.0

            async def end() -> None:
                nonlocal took
                took = await fleet.end(ending, signal.SIGTERM)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end)
                try:
                    async for _ in lines:
                        pass
                    how = "ended"
                except httpx2.HTTPError as exc:
                    how = f"broke: {exc!r}"
        answer = await alice.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    await fleet.wait(fleet.start())
    seen.note(
        how == "ended" and took < GRACE and answer.status_code == NOT_FOUND,
        f"an old client's stream has {how} with its worker, {took:.1f} s; a post to it later is "
        f"{answer.status_code}",
    )


async def idle(fleet: Fleet, seen: Seen, *, listeners: int, seconds: float) -> None:
    """Let clients listen and say nothing."""
    lasted = 0

    async def one(number: int) -> None:
        nonlocal lasted
        async with raw(fleet, f"user{number}") as (http, at):
            at.only = fleet.workers[number % 2]
            session_id = await begin(http)
            at.only = fleet.workers[(number // 2) % 2]
            try:
                with anyio.move_on_after(seconds) as scope:
                    async with http.stream("GET", URL, headers=of(session_id)) as stream:
                        async for _ in stream.aiter_bytes():
                            pass
                lasted += scope.cancelled_caught
                await http.delete(URL, headers=of(session_id))
            except httpx2.HTTPError:
                pass

    async with anyio.create_task_group() as tasks:
        for number in range(listeners):
            tasks.start_soon(one, number)
    seen.note(lasted == listeners, f"{lasted} of {listeners} idle listeners lasted {seconds:g} s")


async def nothing_left(fleet: Fleet, seen: Seen) -> None:
    """Look whether anything of the sessions, all of which have been deleted, is left."""
    tables = ("sessions", "logs", "messages")
    engine = sa.create_engine(fleet.url)
    try:
        deadline = time.monotonic() + 20
        left = {"?": 1}
        while any(left.values()) and time.monotonic() < deadline:
            with engine.connect() as connection:
                left = {
                    name: connection.exec_driver_sql(f"SELECT count(*) FROM trio_{name}").scalar()  # noqa: S608 -- names of our own
                    or 0
                    for name in tables
                }
            await anyio.sleep(0.5)
    finally:
        engine.dispose()
    seen.note(not any(left.values()), f"rows left: {left}")


# ---- by hand ----


def call(number: int, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """Return a request."""
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def of(session_id: str, event_id: str | None = None) -> dict[str, str]:
    """Return the headers of a session's request."""
    headers = {**HEADERS, "mcp-session-id": session_id}
    return headers if event_id is None else {**headers, "last-event-id": event_id}


async def begin(http: httpx2.AsyncClient) -> str:
    """Begin a session, and return its id."""
    answer = await http.post(URL, json=BEGIN, headers=HEADERS)
    answer.raise_for_status()
    session_id: str = answer.headers["mcp-session-id"]
    await http.post(URL, json=BEGUN, headers=of(session_id))
    return session_id


def event_ids(text: str) -> list[str]:
    """Return the ids of a stream's events."""
    return [line[4:].strip() for line in text.splitlines() if line.startswith("id: ")] or [""]


async def first_event(http: httpx2.AsyncClient, session_id: str, request: Any) -> str:
    """Make a request, and leave after its first event, whose id is returned."""
    async with http.stream(
        "POST", URL, content=json.dumps(request), headers=of(session_id)
    ) as answer:
        async for text in answer.aiter_text():
            return event_ids(text)[0]
    return ""
