"""What calls take when many sessions make them, and what the replay of a long stream takes."""

import statistics
import time
from typing import Any

import anyio
import httpx2

from mcp_check.cases import ERRORS, Count, Seen, begin, call, event_ids, of
from mcp_check.fleet import URL, Fleet, raw

LEAST = 3  # replays whose time is taken


async def load(
    fleet: Fleet, seen: Seen, *, sessions: int, rate: float, seconds: float, is_passed_on: bool
) -> None:
    """Hold many sessions at one worker, and call them so many times a second.

    A call begins when it is due, whatever became of those before.

    Args:
        fleet: the workers.
        seen: what is seen.
        sessions: how many.
        rate: calls a second.
        seconds: for which they are made.
        is_passed_on: calls come to the other worker.
    """
    here, other = fleet.workers[:2]
    times: list[float] = []
    count = Count()
    async with raw(fleet, "alice") as (http, balancer):
        balancer.only = here
        ids: list[str] = []

        async def open_some(number: int) -> None:
            ids.extend([await begin(http) for _ in range(number)])

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(open_some, sessions // 10)
        balancer.only = other if is_passed_on else here

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
            for number in range(int(rate * seconds)):
                await anyio.sleep(max(0.0, began + number / rate - time.perf_counter()))
                tasks.start_soon(one, ids[number % len(ids)], number)
        balancer.only = here
        for session_id in ids:
            await http.delete(URL, headers=of(session_id))
    seen.note(count.answered == count.asked, f"{rate:g} calls a second: {count}")
    if len(times) > 1:
        hundredths = statistics.quantiles(times, n=100)
        where = "through the other worker" if is_passed_on else "at their own worker"
        what = f"{len(ids)} sessions, {rate:g} calls/s {where}"
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
        for _ in range(LEAST):
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
    seen.times[f"replay of {events} events"] = min(times)
