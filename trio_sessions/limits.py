"""How many sessions there may be, and for how long."""

from dataclasses import dataclass

from trio_sessions._checks import count, seconds

__all__ = ["NO_LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a registry refuses or ends by itself; None: no limit. Durations are seconds.

    Raises:
        TypeError, ValueError: a limit is none; the message names it.
    """

    max_sessions: int | None = None
    """Held by one worker at a time: one more is refused, `TooManySessions`. An id that is held
    already may be added again."""
    max_sessions_per_owner: int | None = None
    """Of one owner, held by all workers that are not gone. `SessionRegistry.add_session` with an
    ``owner`` that has as many already is refused, `TooManySessions`: they are counted by the
    database, in one step with the write, so that no two get the last place. An id that is held by
    this worker, or is that owner's already, may be added again. An owner that is set later is not
    refused, and counts from then. `SessionRegistry.adopt_session` is not refused either: a session
    that moves is no further one. While the database is away sessions are let in, and stay. So
    does one whose owner other workers were counting all the time, for some seconds: it is held, and
    its row is written later, counted then if there is room. Who is in is never removed for it."""
    idle_timeout: float | None = None
    """A session of which nothing was heard for longer is ended by the next pass. Heard of is the
    end of each message handled, and `SessionRegistry.touch`. While a message is being handled, or
    `SessionRegistry.open_inbox` is open, a session is not idle. `SessionRegistry.add_session` is
    its client's doing, so the time begins anew, at another worker too;
    `SessionRegistry.adopt_session` says how much of it has passed."""
    max_age: float | None = None
    """A session that this worker has held for longer is ended by the next pass, whatever it does.
    Adding its id again here does not make it younger; another worker begins to count anew."""
    revocation_ttl: float = 3600.0
    """For so long the id of a session that was revoked here is refused, `SessionRevoked`."""
    log_ttl: float = 600.0
    """Entries of logs that are older are deleted, once a ``cleanup_interval``, by every registry
    that has appended something since it was opened; where none has, they go with their sessions."""

    def __post_init__(self) -> None:
        """Check every limit; durations come out as `float`."""
        if self.max_sessions is not None:
            count("limits.max_sessions", self.max_sessions)
        if self.max_sessions_per_owner is not None:
            count("limits.max_sessions_per_owner", self.max_sessions_per_owner)
        for name in ("idle_timeout", "max_age", "revocation_ttl", "log_ttl"):
            value = getattr(self, name)
            if value is not None or name.endswith("_ttl"):
                object.__setattr__(self, name, seconds(f"limits.{name}", value))


NO_LIMITS = Limits()
"""The default of `open_registry`: no session is refused or ended for its number or its age."""
