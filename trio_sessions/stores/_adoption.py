"""Who may adopt a session, in our stores."""

from trio_sessions.writes import Claim, Write

__all__ = ["adopts", "is_of_whom_it_names"]


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
