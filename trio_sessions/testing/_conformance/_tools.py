"""What the checks of every part need."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from typing import TypeVar, cast

import trio

from trio_sessions.abc import SessionStore, Worker
from trio_sessions.errors import RowUnavailable
from trio_sessions.types import StoredMessage, Wanted
from trio_sessions.writes import Answer, Batch, Claim, Claimed, Unfinished, Write

__all__ = ["TICK", "Check", "Checks", "Client", "MakeStore", "opened", "wanted", "without_a_thread"]

MakeStore = Callable[[], SessionStore]
"""Returns a store on what is shared: the same at each call, or another on the same rows.
What is shared must be empty when a check begins."""

Check = Callable[[MakeStore], Awaitable[None]]

T = TypeVar("T")

TICK = 0.02  # seconds: more than the clock of any store needs to tell two moments apart
_PATIENCE = 10.0  # seconds for which a write is asked for again because its row is locked
_numbers = count(1)


class Checks(tuple[T, ...]):  # noqa: SLOT001 -- each has a docstring of its own
    """Checks, for which `help` says what they are of, and not what a tuple is."""

    def __new__(cls, said: str, *checks: T) -> "Checks[T]":
        """Make them; ``said`` is their docstring."""
        made = super().__new__(cls, checks)
        made.__doc__ = inspect.cleandoc(said)
        return made

    def __repr__(self) -> str:
        return f"<{len(self)} conformance checks>"


class Client:
    """One worker with its store."""

    def __init__(self, store: SessionStore, worker: Worker) -> None:
        self.store = store
        self.worker = worker
        self.pieces: list[Unfinished] = []
        """What writes were answered with that went again."""

    async def commit(self, *writes: Write[object]) -> list[Answer]:
        """Commit one batch; what is locked or unfinished goes again, as with every writer."""
        answers = list((await self.store.commit(self.worker, Batch(writes=writes))).answers)
        assert len(answers) == len(writes)
        deadline = trio.current_time() + _PATIENCE
        while again := [
            n for n, one in enumerate(answers) if isinstance(one, RowUnavailable | Unfinished)
        ]:
            assert trio.current_time() < deadline, answers
            self.pieces += [one for one in answers if isinstance(one, Unfinished)]
            await trio.sleep(TICK)
            batch = Batch(writes=[writes[n] for n in again])
            answered = (await self.store.commit(self.worker, batch)).answers
            for place, answer in zip(again, answered, strict=True):
                answers[place] = answer
        return answers

    async def write(self, write: Write[T]) -> T:
        """Commit a batch of one."""
        [answer] = await self.commit(write)
        return cast("T", answer)

    async def claim(self, session_id: str, generation: int = 1, age: float = 0.0) -> Claimed:
        """Claim one session."""
        return await self.write(Claim(session_id=session_id, generation=generation, age=age))

    async def holds(self, *session_ids: str) -> bool:
        """Say whether all of these rows are this worker's."""
        answers = await self.store.refresh(self.worker, session_ids)
        assert not answers.unknown
        return answers.held == set(session_ids)

    async def messages(self, session_id: str) -> list[StoredMessage]:
        """Return what waits for a session of this worker."""
        found = await self.store.fetch(self.worker, [wanted(session_id)])
        return list(found.get(session_id, ()))

    async def payloads(self, session_id: str) -> list[str]:
        """Return what waits for a session of this worker."""
        return [message.payload for message in await self.messages(session_id)]


@asynccontextmanager
async def opened(make_store: MakeStore, *names: str) -> AsyncIterator[list[Client]]:
    """Open a store for each worker; when the block ends well, delete what they hold."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_opened(make_store, name)) for name in names]
        yield clients
        for one in clients:
            while (await one.store.delete_all(one.worker, limit=1000)).more:
                pass


@asynccontextmanager
async def _opened(make_store: MakeStore, name: str) -> AsyncIterator[Client]:
    store = make_store()
    worker = Worker(
        worker_id=name,
        incarnation=f"{name}-{next(_numbers)}",
        limiter=trio.CapacityLimiter(2),
    )
    await store.open(worker)
    try:
        yield Client(store, worker)
    finally:
        with trio.CancelScope(shield=True):
            await store.close(worker)


@contextmanager
def without_a_thread(worker: Worker) -> Iterator[None]:
    """Let whatever asks for a thread of this worker wait until the block ends."""
    places = [object() for _ in range(int(worker.limiter.available_tokens))]
    for place in places:
        worker.limiter.acquire_on_behalf_of_nowait(place)
    try:
        yield
    finally:
        for place in places:
            worker.limiter.release_on_behalf_of(place)


def wanted(session_id: str, *held: int, count: int = 100, size: int = 1_000_000) -> Wanted:
    """Return what a worker asks for that has much room."""
    return Wanted(session_id=session_id, held=frozenset(held), count=count, size=size)
