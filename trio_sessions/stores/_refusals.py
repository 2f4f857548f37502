"""The answers to claims that are refused, as our stores give them."""

from collections.abc import Mapping

from trio_sessions.types import Holder
from trio_sessions.writes import Claimed, Outcome

__all__ = ["REFUSALS"]

REFUSALS: Mapping[Outcome, Claimed] = {
    outcome: Claimed(
        outcome=outcome,
        holder=Holder(worker_id="", incarnation=""),
        capabilities=None,
        born="",
    )
    for outcome in (Outcome.REVOKED, Outcome.TOO_MANY, Outcome.NOT_ADOPTED)
}
"""By their reasons: the id was revoked, its owner has too many, it is another's to adopt."""
