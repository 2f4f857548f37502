"""How many rows one statement of a pass is given: fewer where that was too much for its time.

A chunk that takes longer than the database gives a statement would do so in every pass, and its
rows would expire. The pass splits it at once, as far as it has time for that. What it has learned
is kept for the passes after it, so that they neither learn it again each time nor, with a short
``cleanup_interval``, run out of time before they have.
"""

__all__ = ["Portions"]

_GOOD_PASSES = 8  # in a row, until twice as much is tried: each trial may cost a refresh
_FLOOR = 64  # of this part of batch_size at least: a single row that takes for ever teaches nothing


class Portions:
    """The size of the chunks of one registry's passes.

    Args:
        most: ``batch_size``.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = most
        self._good_passes = 0
        self._is_good = True

    @property
    def size(self) -> int:
        """Rows in one chunk of the next pass."""
        return self._size

    def too_much(self, rows: int) -> None:
        """Note that so many rows were too much for one statement."""
        self._is_good = False
        self._size = min(self._size, max(1, rows // 2, self._most // _FLOOR))

    def end_pass(self, *, complete: bool) -> None:
        """Note that a pass has asked for all rows; after some good ones, try more.

        Args:
            complete: whether the database has answered for every row.
        """
        self._good_passes = self._good_passes + 1 if complete and self._is_good else 0
        self._is_good = True
        if self._good_passes >= _GOOD_PASSES:
            self._good_passes = 0
            self._size = min(self._most, self._size * 2)
