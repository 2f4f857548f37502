"""What calls take: one alone, and of many sessions; and what the replay of a long stream takes."""

import statistics
import time
from typing import Any

import anyio
import httpx2

from mcp_check.common import ERRORS, Count, Seen, begin, call, event_ids, of
from mcp_check.fleet import URL, Fleet, connect, raw

WARM = 3  # calls that are not counted
REPLAYS = 5  # whose time is taken
SIDE_BY_SIDE = 10  # sessions that are opened, and ended, at a time
OWN = "own worker"
OTHER = "other worker"
PROCESSOR = ", processor"
OWN_THRESHOLDS = "Python's own thresholds"


def load_name(sessions: int, rate: float, is_passed_on: bool) -> str:  # noqa: FBT001 -- of the case
    """Return under which name the times of `load` stand, up to a comma."""
    where = "through the other worker" if is_passed_on else "at their own worker"
    return f"{sessions} sessions, {rate:g} calls/s {where}"


def replay_name(events: int) -> str:
    """Return under which name the time of `replay` stands."""
    return f"replay of {events} events"


async def one_call(fleet: Fleet, seen: Seen, *, rounds: int) -> None:
    """Take the time of a call at the session's worker, and through the other one."""
    here, other = fleet.workers[:2]
    async with connect(fleet, only=here) as (session, balancer):
        for name, worker in ((OWN, here), (OTHER, other)):
            balancer.only = worker
            times = []
            used = 0.0
            count = Count(asked=WARM + rounds)
            for i in range(WARM + rounds):
                if i == WARM:
                    used = fleet.processor_time()
                began = time.perf_counter()
                try:
                    answer = await session.call_tool("echo", {"text": "x"})
                    assert answer.structured_content == {"result": "x"}
                except ERRORS as exc:
                    count.lose(exc)
                    break
                count.answered += 1
                times.append(time.perf_counter() - began)
            seen.note(count.answered == count.asked, f"calls one by one at the {name}: {count}")
            if count.answered == count.asked:
                seen.times[name] = statistics.median(times[WARM:])
                seen.times[f"{name}{PROCESSOR}"] = (fleet.processor_time() - used) / rounds
        balancer.only = here


async def load(
    fleet: Fleet,
    seen: Seen,
    *,
    sessions: int,
    rate: float,
    seconds: float,
    compares_thresholds: bool,
) -> None:
    """Hold many sessions at one worker, and call them so many times a second, at the other one.

    A call begins when it is due, whatever became of those before. The SDK alone is called at the
    sessions' own worker, for the other one does not know them.

    Args:
        fleet: the workers.
        seen: what is seen.
        sessions: how many.
        rate: calls a second.
        seconds: for which they are made.
        compares_thresholds: make them again while Python looks for garbage as often as it would.
    """
    here, other = fleet.workers[:2]
    what = load_name(sessions, rate, not fleet.is_alone)
    async with raw(fleet, "alice", here) as (http, balancer):
        ids: list[str] = []
        numbers = iter(range(sessions))

        async def open_some() -> None:
            ids.extend([await begin(http) for _ in numbers])

        async def end_some() -> None:
            while ids:
                await http.delete(URL, headers=of(ids.pop()))

        async with anyio.create_task_group() as tasks:
            for _ in range(SIDE_BY_SIDE):
                tasks.start_soon(open_some)
        balancer.only = here if fleet.is_alone else other
        await _call(http, seen, ids, rate=rate, seconds=seconds, what=what)
        if compares_thresholds and fleet.collect_after:
            await fleet.ask("/collect?after=0")
            await _call(
                http, seen, ids, rate=rate, seconds=seconds, what=f"{what}, {OWN_THRESHOLDS}"
            )
            await fleet.ask(f"/collect?after={fleet.collect_after}")
        balancer.only = here
        async with anyio.create_task_group() as tasks:
            for _ in range(SIDE_BY_SIDE):
                tasks.start_soon(end_some)


async def _call(
    http: httpx2.AsyncClient, seen: Seen, ids: list[str], *, rate: float, seconds: float, what: str
) -> None:
    """Call sessions in turn, and note how long that takes."""
    times: list[float] = []
    count = Count()

    async def one(session_id: str, number: int) -> None:
        began = time.perf_counter()
        count.asked += 1
        try:
            asked = call(number, "echo", text=str(number))
            answer = await http.post(URL, json=asked, headers=of(session_id))
            if answer.status_code == httpx2.codes.OK and f'"{number}"' in answer.text:
                count.answered += 1
                times.append(time.perf_counter() - began)
            else:
                count.lose(AssertionError(f"status {answer.status_code}"))
        except ERRORS as exc:
            count.lose(exc)

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(max(1, round(rate * seconds))):
            await anyio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.start_soon(one, ids[number % len(ids)], number)
    seen.note(count.answered == count.asked, f"{what}: {count}")
    if len(times) > 1:
        hundredths = statistics.quantiles(times, n=100)
        seen.times[f"{what}, p50"] = hundredths[49]
        seen.times[f"{what}, p99"] = hundredths[98]


async def replay(fleet: Fleet, seen: Seen, *, events: int) -> None:
    """Read a stream of many events again, from its first one on."""
    times: list[float] = []
    async with raw(fleet, "alice", fleet.workers[0]) as (http, _):
        session_id = await begin(http)
        asked: dict[str, Any] = call(1, "add_many", number=events)
        asked["params"]["_meta"] = {"progressToken": 1}
        answer = await http.post(URL, json=asked, headers=of(session_id))
        ids = [one for one in event_ids(answer.text) if one]
        replayed: list[int] = []
        for _ in range(REPLAYS):
            began = time.perf_counter()
            async with http.stream("GET", URL, headers=of(session_id, ids[0])) as stream:
                pieces: list[str] = []
                async for piece in stream.aiter_text():
                    pieces.append(piece)
                    if ids[-1] in "".join(pieces[-2:]):
                        break
            times.append(time.perf_counter() - began)
            replayed.append(len(set(event_ids("".join(pieces))) & set(ids)))
        await http.delete(URL, headers=of(session_id))
    seen.note(
        len(ids) >= events and set(replayed) == {len(ids) - 1},
        f"of {len(ids)} events {min(replayed)} came again after the first",
    )
    seen.times[replay_name(events)] = statistics.median(times)
    seen.times[f"{replay_name(events)}, the least"] = min(times)
