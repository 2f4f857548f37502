"""How time passes in a `RegistryMachine`: really, or not at all unless a rule says so."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio
import trio.testing

from trio_sessions.limits import Limits

__all__ = ["REAL", "VIRTUAL", "Pace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Durations, in seconds on the run's clock."""

    is_virtual: bool
    session_ttl: float
    check_timeout: float
    store_timeout: float
    tick: float
    """Between two rules: more than a store's clock needs to tell two moments apart, and, where
    statements can be held up, more than the margin within which the order of adds is chance."""
    lateness: float
    """By which an answer is late."""
    hearing: float
    """For which a pass may go on with what one answer has told it, until the next one has come or
    has not."""
    moment: float
    """To wait for what need not come."""
    patience: float
    """To wait for what must come."""
    until_all_dead_are_swept: float
    """0.0: no lease runs out."""
    revocation_ttl: float
    """For which a revoked id is refused: a few rules, so that its session may come again."""

    def make_clock(self) -> trio.abc.Clock | None:
        """Return the clock of a run; None: the real one."""
        return trio.testing.MockClock(autojump_threshold=0) if self.is_virtual else None

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Say why a step has not ended, if virtual time has passed while threads were at work."""
        try:
            yield
        except trio.TooSlowError:
            if not self.is_virtual:
                raise
            raise RuntimeError(
                "this store works in threads, or waits for something outside of Trio, and the "
                'virtual clock cannot wait for that: set clock = "real"'
            ) from None

    def settings(self) -> Mapping[str, Any]:
        """Return the settings of each registry but its TTL; no message is ever too old."""
        return {
            "cleanup_interval": self.session_ttl / 2,
            "check_timeout": self.check_timeout,
            "disconnect_timeout": self.check_timeout,
            "store_timeout": self.store_timeout,
            "message_ttl": 1e6,
            "limits": Limits(revocation_ttl=self.revocation_ttl),
        }


VIRTUAL = Pace(
    is_virtual=True,
    session_ttl=40.0,
    check_timeout=1.0,
    store_timeout=2.0,
    tick=0.1,
    lateness=0.5,
    hearing=4.0,
    moment=0.5,
    patience=60.0,
    until_all_dead_are_swept=88.0,
    revocation_ttl=1.0,
)
REAL = Pace(
    is_virtual=False,
    session_ttl=3600.0,
    check_timeout=0.05,
    store_timeout=30.0,
    tick=0.005,
    lateness=0.01,
    hearing=1.0,
    moment=0.01,
    patience=10.0,
    until_all_dead_are_swept=0.0,
    revocation_ttl=0.05,
)
