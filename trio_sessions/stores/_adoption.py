"""Who may adopt a session, and the answer to whoever may not, as our stores give it."""

from trio_sessions.types import Holder
from trio_sessions.writes import Claim, Claimed, Outcome, Write

__all__ = ["NOT_ADOPTED", "adopts", "is_of_whom_it_names"]

NOT_ADOPTED = Claimed(
    outcome=Outcome.NOT_ADOPTED,
    holder=Holder(worker_id="", incarnation=""),
    capabilities=None,
    born="",
)


def adopts(write: Write[object]) -> bool:
    """Say whether a write is the claim of a session that another worker is to hold until now."""
    return isinstance(write, Claim) and write.only_from is not None


def is_of_whom_it_names(claim: Claim, *, worker_id: str, incarnation: str) -> bool:
    """Say whether a row of another incarnation is held by whom an adoption names.

    Args:
        claim: the adoption.
        worker_id: the row's.
        incarnation: the row's.
    """
    return claim.only_from in {worker_id, incarnation}
