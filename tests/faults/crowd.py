"""Sessions that live while faults happen: they come, move, end, have owners, and get messages."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from trio_sessions import SessionNotFound, SessionRegistry, StoreUnavailable
from trio_sessions.testing import FakeTransport

__all__ = ["Client", "Crowd"]

STAYING, ROAMING = 6, 14  # of each worker, in the beginning
MOST = 30  # of each worker
APART = 2.5  # seconds between two connections of one session: more than any margin for claims
PAUSE = 0.1  # seconds between two acts, at most


@dataclass(eq=False, slots=True)
class Client:
    """One session, as its client knows it: whoever it has connected to last holds it."""

    session_id: str
    worker: int
    transport: FakeTransport = field(default_factory=FakeTransport)
    before: list[FakeTransport] = field(default_factory=list)
    """Of connections that it has left, and that nobody has noticed to be closed."""
    connected_at: float = 0.0
    is_busy: bool = False
    owners: list[str] = field(default_factory=list)
    """Who was to be its owner, in that order."""
    confirmed: int = -1
    """The last of these that was confirmed."""
    accepted: list[int] = field(default_factory=list)
    """Messages to it that the registry took."""
    received: list[int] = field(default_factory=list)
    sent: int = 0
    denied: int = 0
    """So often was somebody told that it does not exist."""
    forgiven: int = 0
    """So many of the accepted ones may be lost: the database has forgotten them."""

    @property
    def is_lost(self) -> bool:
        """It was disconnected, and has not asked for it."""
        return self.transport.disconnects > 0

    def missing(self) -> set[int]:
        """Return the messages that were accepted, and have not come."""
        return set(self.accepted) - set(self.received)

    def wrong(self, owner: str | None) -> dict[str, object]:
        """Say what is not as it must be of its messages, and of the owner that its row has."""
        found: dict[str, object] = {}
        if due := self.missing() - set(self.accepted[: self.forgiven]):
            found["messages that have not come"] = sorted(due)
        first = list(dict.fromkeys(self.received))
        if first != sorted(first):
            found["out of order"] = self.received
        if self.denied:
            found["told that it does not exist"] = self.denied
        if self.confirmed >= 0 and owner not in self.owners[self.confirmed :]:
            found["owner"] = f"{owner}, of {self.owners}, {self.confirmed} confirmed"
        return found


class Crowd:
    """Comes, moves and dies; a part of it stays where it is, is written to, and has owners.

    Args:
        registries: the workers that it goes to.
        nursery: where what it has begun goes on.
        chance: decides what it does.
    """

    def __init__(
        self, registries: Sequence[SessionRegistry], nursery: trio.Nursery, chance: random.Random
    ) -> None:
        self.acts = Counter[str]()
        self.alive: dict[str, Client] = {}
        self.lost: list[str] = []
        """Were disconnected when nobody had ended them, and have moved or ended since."""
        self._registries = registries
        self._nursery = nursery
        self._chance = chance
        self._number = 0
        self._acted = trio.Event()

    # ---- what the world does with it ----

    async def settle(self) -> None:
        """Let the first come to each worker, and those that stay read their messages."""
        async with trio.open_nursery() as nursery:
            for worker in range(len(self._registries)):
                for number in range(STAYING + ROAMING):
                    self.come(worker, nursery, stays=number < STAYING)
        for client in self.alive.values():
            client.connected_at -= APART  # they may move at once
        for client in self.staying:
            self._nursery.start_soon(self._read, client)

    async def run(self) -> None:
        """Act until cancelled; what has begun goes on to its end."""
        while True:
            self._act()
            self._acted.set()
            self._acted = trio.Event()
            await trio.sleep(self._chance.uniform(0.0, PAUSE))  # the pace of clients, not a wait

    async def until_acted(self, times: int) -> None:
        """Wait until it has done so many things more."""
        goal = self.acts.total() + times
        while self.acts.total() < goal:
            await self._acted.wait()

    def come(
        self, worker: int, nursery: trio.Nursery | None = None, *, stays: bool = False
    ) -> Client:
        """Let a new session come to a worker."""
        self._number += 1
        name = f"{'stays' if stays else 'roams'}-{self._number:04}"
        return self.come_as(name, worker, nursery)

    def come_as(self, session_id: str, worker: int, nursery: trio.Nursery | None = None) -> Client:
        """Let a session come to a worker that has been elsewhere until now."""
        client = self.alive[session_id] = Client(session_id, worker)
        self._begin(self._connect, client, nursery)
        return client

    @property
    def staying(self) -> list[Client]:
        """Those that do not move."""
        return [one for one in self.alive.values() if one.session_id.startswith("stays")]

    def adding(self, worker: int) -> list[Client]:
        """Return those that connect to a worker now."""
        return [
            one
            for one in self.alive.values()
            if one.worker == worker and one.is_busy and not one.session_id.startswith("stays")
        ]

    @property
    def is_busy(self) -> bool:
        """Whether something that it has begun has not ended yet."""
        return any(one.is_busy for one in self.alive.values())

    def greet(self) -> None:
        """Send a message to each worker, again and again until it is accepted."""
        for worker in range(len(self._registries)):
            client = next(one for one in self.staying if one.worker == worker)
            self._nursery.start_soon(self._greet, client)

    def forgive(self) -> None:
        """Let messages be lost that were accepted until now."""
        for client in self.staying:
            client.forgiven = len(client.accepted)

    # ---- what it does ----

    def _act(self) -> None:
        action = self._chance.choices(
            ["come", "move", "die", "remove", "own", "ask", "send"], [3, 2, 1, 1, 2, 2, 4]
        )[0]
        free = [one for one in self.alive.values() if self._is_free(one, action)]
        if action == "come":
            if len(self.alive) < MOST * len(self._registries):
                self.come(self._chance.randrange(len(self._registries)))
        elif free:
            client = self._chance.choice(free)
            if action == "own":
                self._begin(self._own, client)
            elif action == "ask":
                self._begin(self._ask, client)
            elif action == "send":
                self._begin(self._send, client)
            else:
                self._end_or_move(client, action)
        self.acts[action] += 1

    def _is_free(self, client: Client, action: str) -> bool:
        stays = client.session_id.startswith("stays")
        return (
            not client.is_busy
            and trio.current_time() - client.connected_at > APART
            and stays == (action in {"own", "ask", "send"})
        )

    def _end_or_move(self, client: Client, action: str) -> None:
        if client.is_lost:
            self.lost.append(client.session_id)
        if action == "move":
            if self._chance.random() < 0.5:
                client.transport.state = "closed"
            client.before.append(client.transport)
            client.transport = FakeTransport()
            client.worker = (client.worker + 1) % len(self._registries)
            self._begin(self._connect, client)
            return
        del self.alive[client.session_id]
        for transport in client.before:
            transport.state = "closed"  # a database that went back may give life to it
        if action == "die":
            client.transport.state = "closed"
        else:
            self._begin(self._remove, client)

    def _begin(
        self,
        act: Callable[[Client], Awaitable[None]],
        client: Client,
        nursery: trio.Nursery | None = None,
    ) -> None:
        async def do() -> None:
            with trio.CancelScope(shield=True):
                await act(client)
            client.is_busy = False

        client.is_busy = True
        (nursery or self._nursery).start_soon(do)

    async def _connect(self, client: Client) -> None:
        await self._registries[client.worker].add_session(client.session_id, client.transport)
        client.connected_at = trio.current_time()

    async def _remove(self, client: Client) -> None:
        await self._registries[client.worker].remove_session(client.session_id)

    async def _own(self, client: Client) -> None:
        owner, number = f"owner {len(client.owners)}", len(client.owners)
        client.owners.append(owner)
        try:
            await self._registries[client.worker].set_session_owner(client.session_id, owner)
        except StoreUnavailable:
            return
        client.confirmed = number

    def _elsewhere(self, client: Client) -> SessionRegistry:
        return self._registries[(client.worker + 1) % len(self._registries)]

    async def _ask(self, client: Client) -> None:
        if await self._elsewhere(client).session_exists(client.session_id) is False:
            client.denied += 1

    async def _send(self, client: Client) -> None:
        client.sent += 1
        message = client.sent
        try:
            await self._elsewhere(client).broadcast(client.session_id, message)
        except StoreUnavailable:
            return
        except SessionNotFound:
            client.denied += 1
            return
        client.accepted.append(message)

    async def _greet(self, client: Client) -> None:
        before = len(client.accepted)
        while len(client.accepted) == before:
            if not client.is_busy:
                client.is_busy = True
                await self._send(client)
                client.is_busy = False
            await trio.sleep(0.1)  # a client tries again after a while

    async def _read(self, client: Client) -> None:
        async with self._registries[client.worker].open_inbox(client.session_id) as inbox:
            async for message in inbox:
                client.received.append(message)
