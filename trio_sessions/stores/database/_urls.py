"""What may name a database: checked before anything is opened, and masked in every message."""

import importlib

import sqlalchemy
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from trio_sessions.errors import MissingDependency

__all__ = ["check_engine", "check_url", "masked"]

_DRIVERS = {"sqlite": "pysqlite", "postgresql": "psycopg"}
_UNFIT_POOLS = (AssertionPool, SingletonThreadPool, StaticPool)
_SECRETS = frozenset(
    {"password", "passfile", "sslpassword", "sslkey", "user", "oauth_client_secret"}
)


def masked(url: sqlalchemy.URL) -> str:
    """Return ``url`` as text, without its password, also where that is in the query."""
    query = {key: "***" if key in _SECRETS else value for key, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


def check_url(store: object) -> sqlalchemy.URL:
    """Return ``store`` as the URL of a database that is supported.

    Raises:
        TypeError: it is neither text nor a URL.
        ValueError: it is no URL, or one of a database or driver that is not supported.
        MissingDependency: the driver is not installed.
    """
    if not isinstance(store, str | sqlalchemy.URL):
        raise TypeError(
            "store must be 'memory:', a database URL, a SQLAlchemy Engine or a SessionStore, "
            f"not {type(store).__name__}"
        )
    try:
        url = sqlalchemy.make_url(store)
    except (ArgumentError, ValueError):
        raise ValueError(
            "store is not 'memory:' and cannot be read as a database URL; "
            "examples: sqlite:///sessions.db, postgresql+psycopg://user:password@host/name"
        ) from None  # the original error repeats the URL, password and all
    check_driver(url.get_backend_name(), url.drivername.partition("+")[2])
    if url.get_backend_name() == "sqlite":
        _check_sqlite_is_a_file(url)
    else:
        _import_psycopg()
    return url


def check_engine(engine: sqlalchemy.Engine) -> sqlalchemy.URL:
    """Return the URL of an engine that can be used; raises as `check_url`."""
    check_driver(engine.dialect.name, engine.dialect.driver)
    if engine.dialect.name == "sqlite":
        _check_sqlite_is_a_file(engine.url)
    if isinstance(engine.pool, _UNFIT_POOLS):
        raise ValueError(  # noqa: TRY004 -- an Engine is what it should be
            f"store is an Engine with a {type(engine.pool).__name__}, which cannot serve several "
            "threads at once: make it with poolclass=QueuePool or NullPool"
        )
    return engine.url


def check_driver(backend: str, driver: str) -> None:
    """Raise `ValueError` unless this database is supported, with this driver."""
    if backend not in _DRIVERS:
        raise ValueError(
            f"store has the URL scheme {backend!r}; supported are "
            + " and ".join(f"'{name}+{driver}'" for name, driver in _DRIVERS.items())
        )
    if driver not in ("", _DRIVERS[backend]):
        raise ValueError(
            f"store has the driver {driver!r}; for {backend} it must be {_DRIVERS[backend]!r}, "
            "a synchronous driver that runs in Trio's threads"
        )


def _import_psycopg() -> None:
    # It may be there and not work: without its binary part it needs libpq of the system.
    try:
        importlib.import_module("psycopg")
    except ImportError as exc:
        raise MissingDependency(
            f"store is a PostgreSQL URL and its driver cannot be imported ({exc}): "
            "pip install 'trio_sessions[postgresql]'"
        ) from exc


def _check_sqlite_is_a_file(url: sqlalchemy.URL) -> None:
    name = url.database or ""
    in_memory = any(
        text in url.query.get(key, "") for key, text in (("mode", "memory"), ("vfs", "memdb"))
    )
    if in_memory or name.removeprefix("file:") == "" or ":memory:" in name:
        raise ValueError(
            "store is an in-memory SQLite database, of which every thread would see another "
            "one: use 'memory:' or a file, as in sqlite:///sessions.db"
        )
