"""Figures of the lease and the doubt that every store goes by.

The rule stands in `trio_sessions.abc.WorkerStore`. Who holds a lease is decided in one file of each
store: `memory._workers`, `database.portable._expiry`, `database.postgresql._sweep`.
"""

__all__ = ["DOUBT", "REMEMBERED"]

DOUBT = 2
"""After a rewind the store is in doubt for so many of the longest ``cleanup_interval`` known."""
REMEMBERED = 7 * 86400.0
"""Seconds for which an incarnation is known to be gone, after its row was swept."""
