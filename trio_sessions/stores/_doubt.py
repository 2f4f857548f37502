"""What a store says while it is in doubt; see `trio_sessions.abc.WorkerStore`."""

from trio_sessions.errors import RowDoubtful

__all__ = ["IN_DOUBT", "doubtful"]

IN_DOUBT = (
    "the database was restored, replaced or failed over, and may have forgotten sessions that "
    "their workers are still to write anew: whether there is such a session is unknown until then"
)


def doubtful() -> RowDoubtful:
    """Return the answer to a write for a session that is not there."""
    return RowDoubtful(IN_DOUBT)
