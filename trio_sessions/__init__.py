"""A session registry for gateways on Trio.

A session is removed only when its transport says that it is disconnected, or the
database has confirmed that its row is gone. Whatever is unknown is kept.

Layers, lower never imports higher (checked by import-linter)::

    cli | aio                for operators, for programs on asyncio
    testing | transports     use the public names
    _open                    opening and closing
    _keeper                  the task that holds a registry open
    _registry                what users call; joins and paces passes
    _cleanup | _jobs         the pass; what runs beside the caller
    _owners | _consumer      what is said of sessions; who reads their messages
    _delivery                messages on their way
    _rows | _calls           the edges: to the store, to transports
    _rounds                  one method called on many transports
    _table | stores          siblings
    _inbox                   the messages of one session
    abc, _settings, _json    contracts, settings, encoding
    _process, _forked_run    what a fork has handed down
    _interrupts, _library    where Ctrl-C may arrive; which library runs
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
    StoreInUse,
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
    "StoreInUse",
    "StoreSchemaError",
    "StoreUnavailable",
    "Transport",
    "fingerprint",
    "open_registry",
    "serve_registry",
]
