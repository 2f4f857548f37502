"""A session registry for gateways on Trio.

A session is removed only when its transport says that it is disconnected, or the
database has confirmed that its row is gone. Whatever is unknown is kept.

Layers, lower never imports higher (checked by import-linter)::

    cli | testing | aio      use the public names
    _open                    opening and closing
    _registry                add, get, remove, locate; joins and paces passes
    _cleanup | _jobs         the pass; what runs beside the caller
    _rows | _calls           the edges: to the store, to transports
    _table | stores          siblings
    abc, _settings           contracts, settings
    types, errors            values
"""

from trio_sessions._open import open_registry, serve_registry
from trio_sessions._registry import SessionRegistry
from trio_sessions.abc import SessionStore, Transport
from trio_sessions.errors import (
    InvalidSessionId,
    MessageTooLarge,
    MissingDependency,
    RegistryClosed,
    RowUnavailable,
    SessionNotFound,
    SessionsError,
    StoreSchemaError,
    StoreUnavailable,
)
from trio_sessions.types import CleanupReport, RegistryStatistics, fingerprint

__all__ = [
    "CleanupReport",
    "InvalidSessionId",
    "MessageTooLarge",
    "MissingDependency",
    "RegistryClosed",
    "RegistryStatistics",
    "RowUnavailable",
    "SessionNotFound",
    "SessionRegistry",
    "SessionStore",
    "SessionsError",
    "StoreSchemaError",
    "StoreUnavailable",
    "Transport",
    "fingerprint",
    "open_registry",
    "serve_registry",
]
