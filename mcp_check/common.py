"""What cases note, and requests made by hand."""

import json
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
from mcp.shared.exceptions import MCPError

from mcp_check.fleet import URL

ALONE = "alone"
"""The way in which there is no router: what is lost there is shown, and was never promised."""
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
PATIENCE = 5.0  # seconds for what begins at once; the SDK alone may say nothing for longer
ERRORS = (MCPError, httpx2.HTTPError, TimeoutError, BaseExceptionGroup, AssertionError)


@dataclass
class Seen:
    """What the cases of one way have shown. It is printed at once."""

    way: str
    facts: list[tuple[bool, str]] = field(default_factory=list)
    """Whether a promise was kept, and what was seen, in words."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds, each by the name of what they were taken of."""
    targets: list[tuple[bool, str]] = field(default_factory=list)
    """Those that need no other way to be judged."""

    def note(self, holds: bool, text: str) -> None:  # noqa: FBT001 -- a fact is true or not
        """Note a promise; the SDK alone makes none."""
        self.facts.append((holds, text))
        verdict = "ok  " if holds else "lost" if self.way == ALONE else "FAIL"
        print(f"{verdict} {self.way}: {text}", flush=True)

    def aim(self, is_met: bool, text: str) -> None:  # noqa: FBT001 -- met or not
        """Note a target, which is printed at the end, and may be missed."""
        self.targets.append((is_met, text))

    def leave_out(self, text: str) -> None:
        """Note a case that was not run, and why."""
        print(f"-    {self.way}: {text}", flush=True)


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
    """Make a request, and leave after its first event; return its id, or "" if it has none."""
    with anyio.move_on_after(PATIENCE):
        async with http.stream(
            "POST", URL, content=json.dumps(request), headers=of(session_id)
        ) as answer:
            async for text in answer.aiter_text():
                return event_ids(text)[0]
    return ""
