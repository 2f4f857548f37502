"""Which sessions have been here for too long, or silent. Synchronous, no I/O."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from trio_sessions._entry import Entry
from trio_sessions.limits import Limits

__all__ = ["OverLimits", "over_limits"]


@dataclass(frozen=True, slots=True)
class OverLimits:
    """The sessions that are to end."""

    idle: list[Entry] = field(default_factory=list)
    aged: list[Entry] = field(default_factory=list)


def over_limits(
    entries: Iterable[Entry], limits: Limits, now: float, is_busy: Callable[[Entry], bool]
) -> OverLimits:
    """Return those of these sessions that are to end by themselves.

    Args:
        entries: sessions held here.
        limits: for how long they may be.
        now: on Trio's clock, as `Entry.active_at`.
        is_busy: says of a session whether it is in use just now.
    """
    over = OverLimits()
    for entry in entries:
        if limits.max_age is not None and now - entry.held_since > limits.max_age:
            over.aged.append(entry)
        elif (
            limits.idle_timeout is not None
            and now - entry.active_at > limits.idle_timeout
            and not is_busy(entry)
        ):
            over.idle.append(entry)
    return over
