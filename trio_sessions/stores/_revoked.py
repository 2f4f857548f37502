"""The answer to the claim of an id that was revoked, as our stores give it."""

from trio_sessions.types import Holder
from trio_sessions.writes import Claimed, Outcome

__all__ = ["REFUSED"]

REFUSED = Claimed(
    outcome=Outcome.REVOKED,
    holder=Holder(worker_id="", incarnation=""),
    capabilities=None,
    born="",
)
