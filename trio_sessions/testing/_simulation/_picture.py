"""A run as text: a column for each worker, and one for the database."""

from collections.abc import Sequence

from trio_sessions.testing._simulation._events import DATABASE, Event

__all__ = ["picture"]

_WIDTH = 26


def picture(events: Sequence[Event], workers: int, *, last: int = 40) -> str:
    """Draw the last events of a run.

    Args:
        events: in their order.
        workers: how many columns there are.
        last: lines.
    """
    heads = ["seconds".rjust(10), *(f"w{number}".ljust(_WIDTH) for number in range(workers))]
    lines = [" ".join([*heads, "database"]).rstrip()]
    for event in events[-last:]:
        cells = ["" for _ in range(workers)]
        text = ""
        if event.place == DATABASE:
            text = event.text
        else:
            cells[event.place] = event.text[:_WIDTH]
        columns = (cell.ljust(_WIDTH) for cell in cells)
        lines.append(" ".join([f"{event.at:10.3f}", *columns, text]).rstrip())
    return "\n".join(lines)
