"""Which letters have come before: a database that goes back brings them again.

Synchronous, no I/O.
"""

__all__ = ["Seen"]

_WINDOW = 1000  # numbers of one sender below its largest: what is older counts as seen
_SENDERS = 10_000  # who was heard of last


class Seen:
    """The numbers of letters by their senders, who count them.

    They come about in order. So of each sender those are kept that are not far below the largest,
    and of many senders those that were heard of last: a bound, far beyond what is under way.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, set[int]] = {}
        self._largest: dict[str, int] = {}

    def is_new(self, sender: str, number: int) -> bool:
        """Take note of a letter, and say whether it has not come before."""
        numbers = self._numbers.pop(sender, set())
        largest = self._largest.pop(sender, 0)
        is_new = number > largest - _WINDOW and number not in numbers
        if is_new:
            numbers.add(number)
            largest = max(largest, number)
            if len(numbers) > 2 * _WINDOW:
                numbers = {one for one in numbers if one > largest - _WINDOW}
        self._numbers[sender], self._largest[sender] = numbers, largest
        if len(self._numbers) > _SENDERS:
            oldest = next(iter(self._numbers))
            del self._numbers[oldest], self._largest[oldest]
        return is_new
