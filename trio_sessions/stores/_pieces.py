"""How much a store deletes at a time."""

__all__ = ["PIECE"]

PIECE = 1000
"""Messages of sessions that have ended, at most, that one batch of writes deletes."""
