"""Messages that are sent while others wait: before a reader comes, and after it has read one."""

import trio

from trio_sessions.testing._machine._fleet import Fleet
from trio_sessions.testing._machine._readers import read_first

__all__ = ["ReadFleet"]


class ReadFleet(Fleet):
    """A fleet whose sessions are read in parts, too."""

    async def send_and_read(self, number: int, session_id: str, count: int) -> None:
        """Read what there is, send some messages while nobody reads, and read them."""
        await self.read(session_id)
        await self._send(number, session_id, count)
        await self.read(session_id)

    async def read_between(self, number: int, session_id: str, count: int) -> None:
        """Read what there is, send some, read one of them, send another one, and read the rest."""
        await self.read(session_id)
        await self._send(number, session_id, count)
        await self._read_one(session_id)
        await trio.sleep(self.pace.moment)  # so that the store knows that it was read
        await self._send(number, session_id, 1)
        await self.read(session_id)

    async def _read_one(self, session_id: str) -> None:
        """Read one message; another one is stored before the store knows that it was read."""
        holder = self.model.sole_holder(session_id)
        others = [
            number
            for number, worker in self._live.items()
            if holder is not None and worker.name != holder.name
        ]
        if holder is None or not others or not self.model.all_is_well:
            await self._read(session_id, read_first, is_all=False)
            return
        with self._named(holder.name).door.hold_back_receipts() as has_come:
            await self._read(session_id, read_first, is_all=False)
            with trio.move_on_after(self.pace.moment):
                await has_come.wait()
            await self._send(others[0], session_id, 1)

    async def _send(self, number: int, session_id: str, count: int) -> None:
        for _ in range(count):
            await self.broadcast(number, session_id, durable=True)
