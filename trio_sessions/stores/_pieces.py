"""How much a store deletes at a time."""

__all__ = ["ENTRIES", "PIECE"]

PIECE = 1000
"""Messages of sessions that have ended, at most, that one batch of writes deletes."""

ENTRIES = 10
"""And so many times as many entries of their logs: nobody counts those."""
