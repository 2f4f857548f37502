"""What a benchmark hands back: a table with a title, and the way it is printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table", "median", "ms", "per_second", "quarters", "ratio", "us"]


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


def us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"


def per_second(seconds: float) -> str:
    """Format what each of many took as a speed."""
    return f"{1 / seconds:,.0f}/s"


def quarters(ratios: Sequence[float]) -> tuple[str, str]:
    """Return the lower and the upper quarter, of a single one twice that."""
    parts = statistics.quantiles(ratios) if len(ratios) > 1 else [ratios[0]] * 3
    return ratio(parts[0], 1.0), ratio(parts[2], 1.0)


def ratio(seconds: float, reference: float) -> str:
    return f"{seconds / reference:.2f}x"
