"""The settings of a registry, checked at the door."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trio_sessions._checks import a_name, count, seconds, share, socket_folder, switch
from trio_sessions._handlers import Handler, check_handlers
from trio_sessions._json import encode_object
from trio_sessions._tracing import Tracing
from trio_sessions._version import version
from trio_sessions.limits import NO_LIMITS, Limits
from trio_sessions.types import OnRemoved, Presence

__all__ = ["Settings", "encode_worker_data"]

_STAMP_INTERVAL = 5.0  # seconds: whoever misses three stamps is late
_STAMP_SHARE = 0.1  # of session_ttl: a healthy worker's silence must not look like an outage


def encode_worker_data(name: str, data: object) -> str:
    """Return what a worker tells others of itself, given as ``name``, if it is a JSON object.

    Raises:
        TypeError, ValueError: JSON cannot carry it.
        MessageTooLarge: it has more than 65,536 bytes.
    """
    return encode_object(data, what=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `open_registry` takes besides the store; each field is explained there.

    Raises:
        TypeError: a setting is of the wrong type; the message names it.
        ValueError: a setting is out of range, or two do not fit together.
    """

    worker_id: str | None = None
    session_ttl: float = 3600.0
    message_ttl: float = 600.0
    cleanup_interval: float = 300.0
    max_concurrent: int = 20
    batch_size: int = 1000
    check_timeout: float = 5.0
    disconnect_timeout: float = 5.0
    max_message_bytes: int = 1_048_576
    store_timeout: float = 30.0
    mass_missing_brake: float = 0.5
    limits: Limits = NO_LIMITS
    worker_data: Mapping[str, Any] | None = None
    handlers: Mapping[str, Handler] | None = None
    mail_sockets: str | os.PathLike[str] | None = None
    on_removed: OnRemoved | None = None
    migrate: bool = False
    tracing: Tracing = field(default_factory=Tracing, compare=False)
    """Who is told of what the registry does; here, for it may be said before it is open."""

    def presence(self) -> Presence:
        """Return what a worker with these settings says of itself to the others."""
        return Presence(
            session_ttl=self.session_ttl,
            cleanup_interval=self.cleanup_interval,
            stamp_interval=self.stamp_interval,
            version=version(),
            data=encode_worker_data("worker_data", self.worker_data or {}),
        )

    @property
    def stamp_interval(self) -> float:
        """Seconds between two stamps of the worker's row, at most."""
        return min(self.cleanup_interval, _STAMP_INTERVAL, self.session_ttl * _STAMP_SHARE)

    def __post_init__(self) -> None:
        """Check every field; floats come out as `float`."""
        for name in (
            "session_ttl",
            "message_ttl",
            "cleanup_interval",
            "check_timeout",
            "disconnect_timeout",
            "store_timeout",
        ):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))
        for name in ("max_concurrent", "batch_size", "max_message_bytes"):
            count(name, getattr(self, name))
        if not isinstance(self.limits, Limits):
            raise TypeError(
                f"limits must be trio_sessions.Limits(...), not {type(self.limits).__name__}"
            )
        if self.worker_data is not None:
            encode_worker_data("worker_data", self.worker_data)
        if self.handlers is not None:
            object.__setattr__(self, "handlers", check_handlers(self.handlers))
        if self.mail_sockets is not None:
            folder = socket_folder("mail_sockets", self.mail_sockets)
            object.__setattr__(self, "mail_sockets", folder)
        switch("migrate", self.migrate)
        if self.on_removed is not None and not callable(self.on_removed):
            raise TypeError(
                "on_removed must be an async function of a session id and a RemovalReason, not "
                f"{type(self.on_removed).__name__}"
            )
        brake = share("mass_missing_brake", self.mass_missing_brake)
        object.__setattr__(self, "mass_missing_brake", brake)
        if self.cleanup_interval > self.session_ttl / 2:
            raise ValueError(
                f"cleanup_interval ({self.cleanup_interval:g} s) must be at most half of "
                f"session_ttl ({self.session_ttl:g} s), or one late pass would let live "
                "sessions expire: lower cleanup_interval or raise session_ttl"
            )
        if self.worker_id is not None:
            a_name("worker_id", self.worker_id)  # the same column type, so the same rule
