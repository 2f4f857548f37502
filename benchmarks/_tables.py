"""What a benchmark hands back: a table with a title, and the way it is printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table", "median", "ms", "ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; ``notes`` say what was measured, and how."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            first, *others = zip(cells, widths, strict=True)
            padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
            return "  ".join(padded).rstrip()

        return "\n".join(
            (
                f"== {self.title} ==",
                line(self.columns),
                line(["-" * width for width in widths]),
                *map(line, self.rows),
                *(f"  {note}" for note in self.notes),
                "",
            )
        )


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def ratio(seconds: float, reference: float) -> str:
    return f"{seconds / reference:.2f}x"
