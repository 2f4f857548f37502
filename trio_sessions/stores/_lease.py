"""Figures of the lease and the doubt that every store goes by; see `trio_sessions.abc`."""

__all__ = ["DOUBT", "REMEMBERED"]

DOUBT = 2
"""After a rewind the store is in doubt for so many of the longest ``cleanup_interval`` known."""
REMEMBERED = 7 * 86400.0
"""Seconds for which an incarnation is known to be gone, after its row was swept."""
