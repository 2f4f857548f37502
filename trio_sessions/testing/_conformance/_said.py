"""What the checks of data and of adoptions ask of a store."""

from typing import cast

from trio_sessions.abc import DataStore
from trio_sessions.testing._conformance._tools import Client
from trio_sessions.types import Holder
from trio_sessions.writes import Claim, Differs, Keep, SetData

__all__ = ["adoption", "ask_for_data", "bring", "replacing", "set_data"]


async def ask_for_data(client: Client, session_id: str) -> str | None:
    """Return a session's data."""
    return await cast("DataStore", client.store).get_data(client.worker, session_id)


async def set_data(
    client: Client,
    session_id: str,
    data: str | None,
    *,
    only_if: str | Keep | None = Keep.AS_IS,
    ended: int = 0,
) -> Holder | Differs | None:
    """Replace a session's data."""
    return await client.write(
        SetData(session_id=session_id, data=data, only_if=only_if, ended=ended)
    )


def replacing(session_id: str, data: str | None) -> SetData:
    """Return the write that replaces a session's data."""
    return SetData(session_id=session_id, data=data)


def bring(session_id: str, data: str | None, *, generation: int = 1) -> Claim:
    """Return the claim of a session that is added now, with data."""
    return Claim(session_id=session_id, generation=generation, age=0.0, data=data)


def adoption(session_id: str, from_worker: str, *, generation: int = 1, age: float = 0.0) -> Claim:
    """Return the claim of a session that is to be taken from a worker."""
    return Claim(session_id=session_id, generation=generation, age=age, only_from=from_worker)
