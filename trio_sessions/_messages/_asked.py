"""A fetch that is under way, and what was known when it was asked."""

from dataclasses import dataclass

from trio_sessions.types import Wanted

__all__ = ["Asked"]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A fetch that is under way for one inbox."""

    wanted: Wanted
    at: float
    """When it was asked, on Trio's clock."""
    stored: int
    """How many rows of this worker had been stored when it was asked."""
    news: int
    """How often there had been news of rows until then: a later bell is for what came later."""
