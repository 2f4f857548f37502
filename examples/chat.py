"""A chat on two workers: whichever takes a request, the words reach whom they are for.

On an SQLite file unless DATABASE_URL names another database::

    uvicorn examples.chat:app --workers 2 --port 8000
    curl --no-buffer 'http://127.0.0.1:8000/sse?name=alice'
    curl --json '{"from": "bob", "to": "alice", "text": "hi"}' http://127.0.0.1:8000/say

It leaves out a login: who gives a name is believed, and takes it over from who had it. With
one, `name` and `from` come from it. Nor is there a history for those who are not there.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field, StringConstraints
from sse_starlette import EventSourceResponse, ServerSentEvent

from trio_sessions import SessionNotFound, StoreUnavailable, aio

PAGE = """<!doctype html><title>Chat</title><pre id=said></pre>
<form id=say>to <input id=to required> <input id=text required> <button>say</button></form>
<script>
const name = prompt("Your name?"), at = id => document.getElementById(id)
const show = line => at("said").append(line + "\\n")  // as text: nobody's words become HTML
const source = new EventSource("sse?name=" + encodeURIComponent(name))  // reconnects by itself
source.onmessage = e => { const said = JSON.parse(e.data); show(said.from + ": " + said.text) }
at("say").onsubmit = async e => {
  e.preventDefault()
  const body = JSON.stringify({from: name, to: at("to").value, text: at("text").value})
  const headers = {"content-type": "application/json"}
  const answer = await fetch("say", {method: "POST", headers, body})
  if (!answer.ok) show("not said: " + await answer.text())
}
</script>"""

Name = Annotated[str, StringConstraints(pattern=r"^[\w-]{1,40}$")]


class Words(BaseModel):
    """What one says to another."""

    sender: Name = Field(alias="from")
    to: Name
    text: Annotated[str, StringConstraints(max_length=10_000)]


registry = aio.SessionRegistry(
    os.environ.get("DATABASE_URL", "sqlite:///chat.db"),
    cleanup_interval=10,  # seconds; so soon a stream ends whose name another worker has taken
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the registry before the first request, close it after the last."""
    async with registry:
        yield


app = FastAPI(lifespan=lifespan)


def session_of(name: str) -> str:
    """Return the id of somebody's session: a name. No client ever gives or gets such an id."""
    return f"chat-{name}"


class Listener:
    """One person's stream of events. It ends with the inbox, so the transport has little to do."""

    async def is_connected(self) -> bool:
        """Answer the pass: the stream removes its session as soon as it ends."""
        return True

    async def disconnect(self) -> None:
        """Do nothing: the registry has ended the inbox."""

    async def stream(self, name: str) -> AsyncIterator[ServerSentEvent]:
        """Hold the session as long as the client takes events."""
        session_id = session_of(name)
        try:
            await registry.add_session(session_id, self)
            try:
                await registry.set_session_owner(session_id, name)
            except SessionNotFound:  # another worker has taken the name over, and it is gone
                return
            yield ServerSentEvent(json.dumps({"worker": registry.worker_id}), event="session")
            if registry.get_session_sync(session_id) is self:  # nobody has taken it over here
                async with registry.open_inbox(session_id) as inbox:
                    async for said in inbox:
                        yield ServerSentEvent(json.dumps(said), event="message")
        finally:
            await registry.remove_session(session_id, transport=self)  # not its successor


@app.get("/")
async def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(PAGE)


@app.get("/sse")
async def listen(name: Name) -> EventSourceResponse:
    """Stream what is said to somebody."""
    return EventSourceResponse(Listener().stream(name))


@app.post("/say", status_code=202)
async def say(words: Words) -> None:
    """Say something; 404: nobody of that name is here, 503: nobody can tell."""
    try:
        said = {"from": words.sender, "text": words.text}
        # Durable, for the order too: one person's words may come by different workers, and those
        # in memory here would overtake those that another worker has stored.
        await registry.broadcast(session_of(words.to), said, durable=True)
    except SessionNotFound as exc:
        raise HTTPException(404, f"{words.to} is not here") from exc
    except StoreUnavailable as exc:
        raise HTTPException(503, "try again", {"Retry-After": "5"}) from exc
