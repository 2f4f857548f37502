"""What is done to the workers, and what is seen of it."""

import signal
import time

import anyio
import httpx2
from mcp.client.session import ClientSession

from mcp_check.common import (
    ERRORS,
    GRACE,
    NOT_FOUND,
    PATIENCE,
    Count,
    Seen,
    begin,
    call,
    event_ids,
    first_event,
    of,
)
from mcp_check.fleet import OLD_URL, URL, Fleet, connect, connect_as_of_old, raw


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
        tries = [of(session_id)]
        if event_id:  # the SDK alone gives none
            tries += [of(session_id, event_id), of(bob_session, event_id)]
        for worker in fleet.workers:
            bob_at.only = worker
            for headers in tries:
                with anyio.move_on_after(PATIENCE):  # he may be given a stream
                    async with bob.stream("GET", URL, headers=headers) as got:
                        statuses.add(got.status_code)
                        async for text in got.aiter_text():
                            leaked |= "secret" in text
            answer = await bob.post(URL, json=call(2, "echo", text="x"), headers=of(session_id))
            statuses.add(answer.status_code)
            answer = await bob.delete(URL, headers=of(session_id))
            statuses.add(answer.status_code)
        seen.note(
            statuses <= {400, 403, 404} and not leaked,
            f"bob with alice's session and event ids: statuses {sorted(statuses)}"
            + (", and reads her answer" if leaked else ""),
        )
        await alice.delete(URL, headers=of(session_id))
        bob_at.only = None
        await bob.delete(URL, headers=of(bob_session))


async def death(fleet: Fleet, seen: Seen, *, within: float) -> None:
    """Kill a worker by SIGKILL: what it had answered is replayed, what it ran is not run again.

    Args:
        fleet: the workers.
        seen: what is seen.
        within: seconds after the death, for all that is asked then.
    """
    dying, other = fleet.workers[:2]
    async with raw(fleet, "alice") as (alice, at), connect(fleet, only=dying) as (session, by):
        at.only = dying
        session_id = await begin(alice)
        at.only = dying if fleet.is_alone else other  # through the tunnel
        answered = await first_event(
            alice, session_id, call(1, "slow", name="answered", seconds=0.5)
        )
        running = await first_event(alice, session_id, call(2, "slow", name="running", seconds=120))
        await anyio.sleep(2.0)
        await session.call_tool("echo", {"text": "x"})
        deadline = time.monotonic() + within
        await fleet.end(dying, signal.SIGKILL)

        def left() -> float:
            return deadline - time.monotonic()

        new = fleet.start()  # clients pass it by until it listens
        by.only = at.only = None
        count = Count(asked=1)
        try:
            with anyio.fail_after(left()):
                answer = await session.call_tool("add", {"a": 1, "b": 2})
                count.answered += answer.structured_content == {"result": 3}
        except ERRORS as exc:
            count.lose(exc)
        took = [within - left()]
        seen.note(
            count.answered == 1,
            f"a call to a session of the killed worker: {count}, {took[0]:.1f} s after its death",
        )
        texts = []
        for event_id in (answered, running):
            if not event_id:
                texts.append("no event has had an id")
                continue
            try:
                with anyio.fail_after(left()):
                    got = await alice.get(URL, headers=of(session_id, event_id))
                    texts.append(got.text)
            except ERRORS as exc:
                texts.append(repr(exc))
            took.append(within - left())
        is_replayed = "done answered" in texts[0]
        seen.note(
            is_replayed,
            f"what the killed worker had answered is replayed, {took[1]:.1f} s after its death"
            if is_replayed
            else f"what the killed worker had answered: {texts[0]}",
        )
        ran = fleet.ran.read_text().split() if fleet.ran.exists() else []
        is_said = "not run again" in texts[1]
        seen.note(
            is_said and ran.count("running") == 1,
            f"what it was running has run {ran.count('running')} time(s); the client is "
            + (f"told that it is lost, {took[-1]:.1f} s after" if is_said else "told nothing"),
        )
        await fleet.wait(new)
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
                    how = f"broken off ({type(exc).__name__})"
        answer = await alice.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    await fleet.wait(fleet.start())
    seen.note(
        how == "ended" and took < GRACE and answer.status_code == NOT_FOUND,
        f"an old client's stream has {how} with its worker, {took:.1f} s; a post to it later: "
        f"{answer.status_code}",
    )
