"""The operations that `Store.commit` has replaced, for whoever still calls them one by one."""

import abc
from collections.abc import Sequence
from typing import Any

import trio

from trio_sessions.abc._stem import Store, Worker
from trio_sessions.errors import RowUnavailable
from trio_sessions.types import Capabilities, Holder, RowAnswers, RowClaim, Sent, Undelivered
from trio_sessions.writes import (
    Answer,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Delete,
    Keep,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
    Write,
)

__all__ = ["Doomed"]


_ATTEMPTS, _PAUSE = 20, 0.02  # for a row that is locked


class Doomed(Store):
    """Each is one batch."""

    async def _answers(self, worker: Worker, writes: Sequence[Write[Any]]) -> Sequence[Answer]:
        answers = list((await self.commit(worker, Batch(writes=writes))).answers)
        for _ in range(_ATTEMPTS):
            locked = [n for n, one in enumerate(answers) if isinstance(one, RowUnavailable)]
            if not locked:
                break
            await trio.sleep(_PAUSE)
            again = await self.commit(worker, Batch(writes=[writes[n] for n in locked]))
            for place, answer in zip(locked, again.answers, strict=True):
                answers[place] = answer
        return answers

    async def _all(self, worker: Worker, writes: Sequence[Write[Any]]) -> Sequence[Answer]:
        answers = await self._answers(worker, writes)
        for answer in answers:
            if isinstance(answer, RowUnavailable):
                raise answer
        return answers

    async def _holder(self, worker: Worker, write: Write[Holder | None]) -> Holder | None:
        [answer] = await self._all(worker, [write])
        assert answer is None or isinstance(answer, Holder)
        return answer

    async def write(self, worker: Worker, claims: Sequence[RowClaim]) -> RowAnswers:
        """Write rows for sessions that ``worker`` holds."""
        writes = [
            Claim(
                session_id=claim.session_id,
                generation=claim.generation,
                age=claim.age,
                owner=claim.owner or Keep.OWNER,
                capabilities=claim.capabilities,
            )
            for claim in claims
        ]
        answers = await self._answers(worker, writes)
        held: list[str] = []
        unknown: dict[str, Exception] = {}
        for claim, answer in zip(claims, answers, strict=True):
            if isinstance(answer, RowUnavailable):
                unknown[claim.session_id] = answer
            elif isinstance(answer, Claimed) and answer.outcome is not Outcome.LOST:
                held.append(claim.session_id)
        return RowAnswers(held=frozenset(held), unknown=unknown)

    async def delete(self, worker: Worker, session_ids: Sequence[str], *, up_to: int) -> int:
        """Delete rows of this incarnation of a generation <= ``up_to``."""
        deletions = [Delete(session_id=one, up_to=up_to) for one in session_ids]
        return sum(one for one in await self._all(worker, deletions) if isinstance(one, int))

    async def set_owner(self, worker: Worker, session_id: str, owner: str | None) -> bool:
        """Set a session's owner; say whether there is such a session."""
        return await self._holder(worker, SetOwner(session_id=session_id, owner=owner)) is not None

    async def claim_owner(self, worker: Worker, session_id: str, owner: str) -> str | None:
        """Set a session's owner unless it has one."""
        holder = await self._holder(worker, ClaimOwner(session_id=session_id, owner=owner))
        return None if holder is None else holder.owner

    async def set_capabilities(
        self, worker: Worker, session_id: str, capabilities: Capabilities
    ) -> bool:
        """Replace a session's capabilities; say whether there is such a session."""
        write = SetCapabilities(session_id=session_id, capabilities=capabilities)
        return await self._holder(worker, write) is not None

    async def send(self, worker: Worker, session_id: str, payload: str) -> Sent | None:
        """Store a message for a session."""
        [answer] = await self._all(worker, [Send(session_id=session_id, payload=payload)])
        assert answer is None or isinstance(answer, Sent)
        return answer

    async def send_on(self, worker: Worker, messages: Sequence[Undelivered]) -> int:
        """Store those of these messages whose session another incarnation holds."""
        sends = [
            Send(session_id=one.session_id, payload=one.payload, age=one.age, elsewhere=True)
            for one in messages
        ]
        return sum(isinstance(answer, Sent) for answer in await self._all(worker, sends))

    @abc.abstractmethod
    async def acknowledge(self, worker: Worker, message_ids: Sequence[int]) -> None:
        """Delete those of these messages whose session this incarnation holds."""
