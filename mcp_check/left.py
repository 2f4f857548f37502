"""What is left when every session has ended."""

import time

import anyio
import sqlalchemy as sa

from mcp_check.common import Seen
from mcp_check.fleet import Fleet

WITHIN = 20.0  # seconds
OF_SESSIONS = ("sessions", "logs", "messages")
OF_WORKERS = ("workers", "topics", "mail")
"""Rows that a worker which dies by SIGKILL leaves until its lease ends, an hour by default."""


async def nothing_left(fleet: Fleet, seen: Seen, *, after: str) -> None:
    """Look for what is left of sessions, all of which their clients have deleted.

    Args:
        fleet: the workers.
        seen: what is seen.
        after: what, in words.
    """
    deadline = time.monotonic() + (2.0 if fleet.is_alone else WITHIN)
    while True:
        held: dict[str, int] = {"sessions": 0, "streams": 0}
        for answer in await fleet.ask("/left"):
            for name, number in answer.items():
                held[name] += number
        rows = {} if fleet.is_alone else _rows(fleet)
        of_the_killed = rows.pop("workers of the killed", 0)
        is_clean = (
            not any(held.values()) and not any(rows.values()) and of_the_killed <= fleet.killed
        )
        if is_clean or time.monotonic() > deadline:
            break
        await anyio.sleep(0.5)
    text = f"left in the SDK's memory after {after}: {_words(held)}"
    if not fleet.is_alone:
        text += f"; rows of sessions, and of workers that ended: {_words(rows)}"
    if fleet.killed:
        text += f"; of {fleet.killed} killed, until the lease ends: {of_the_killed}"
    seen.note(is_clean, text)


def _words(counts: dict[str, int]) -> str:
    """Say what there is, or that there is nothing."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "nothing"


def _rows(fleet: Fleet) -> dict[str, int]:
    """Count the rows of sessions, and those of workers that are not there any more.

    The workers that are there are those that were started last.
    """
    engine = sa.create_engine(fleet.url, poolclass=sa.NullPool)
    with engine.connect() as connection:

        def ask(sql: str) -> list[str]:
            return [str(row[0]) for row in connection.exec_driver_sql(sql)]

        rows = {name: int(ask(f"SELECT count(*) FROM trio_{name}")[0]) for name in OF_SESSIONS}  # noqa: S608 -- names of our own
        known = ask("SELECT incarnation FROM trio_workers ORDER BY started_at DESC")
        live, killed = known[: len(fleet.workers)], known[len(fleet.workers) :]
        rows["workers of the killed"] = len(killed)
        for name in ("topics", "mail"):
            whose = ask(f"SELECT incarnation FROM trio_{name}")  # noqa: S608
            kept = {*killed} if name == "mail" else {*live, *killed}
            rows[name] = sum(one not in kept for one in whose)
    return rows
