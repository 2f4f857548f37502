"""How many sessions owners have, and whether there is room for another, as our stores count.

The store counts once for all claims of a batch; those that come in are counted here.
"""

from collections.abc import Mapping
from typing import TypeGuard

from trio_sessions.writes import Claim, Write

__all__ = ["Crowds", "is_limited"]


def is_limited(write: Write[object]) -> TypeGuard[Claim]:
    """Say whether a write may be refused for its owner has too many sessions."""
    return (
        isinstance(write, Claim)
        and write.most_of_owner is not None
        and write.only_from is None
        and isinstance(write.owner, str)
    )


class Crowds:
    """The sessions of the owners that a batch is about.

    Args:
        numbers: how many each owner has, those included that the batch claims and it has already,
            but not what has ended and is replaced by the batch. Where it is as many as one may
            have, or more, it need not be exact.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = dict(numbers)

    def let_in(self, claim: Claim, *, has_already: bool) -> bool:
        """Say whether the session of a claim may come in; it counts from now on."""
        assert isinstance(claim.owner, str)
        assert claim.most_of_owner is not None
        if has_already:
            return True
        number = self._numbers.get(claim.owner, 0)
        if number >= claim.most_of_owner:
            return False
        self._numbers[claim.owner] = number + 1
        return True
