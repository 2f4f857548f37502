"""What may name a database: checked before anything is opened, and masked in every message."""

import sqlalchemy
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from trio_sessions.stores.database._database import Database, known

__all__ = ["check_engine", "check_url", "masked"]

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
    database = check_driver(url.get_backend_name(), url.drivername.partition("+")[2])
    database.check(url)
    database.import_driver()
    return url


def check_engine(engine: sqlalchemy.Engine) -> sqlalchemy.URL:
    """Return the URL of an engine that can be used; raises as `check_url`."""
    database = check_driver(engine.dialect.name, engine.dialect.driver)
    database.check(engine.url)
    if isinstance(engine.pool, _UNFIT_POOLS):
        raise ValueError(  # noqa: TRY004 -- an Engine is what it should be
            f"store is an Engine with a {type(engine.pool).__name__}, which cannot serve several "
            "threads at once: make it with poolclass=QueuePool or NullPool"
        )
    return engine.url


def check_driver(backend: str, driver: str) -> Database:
    """Return the database if it is supported, with this driver; raises `ValueError`."""
    database = known().get(backend)
    if database is None:
        meant = next(
            (f": write {one.name!r}" for one in known().values() if backend in one.aka), ""
        )
        raise ValueError(
            f"store has the URL scheme {backend!r}{meant}; supported are "
            + " and ".join(f"'{one.name}+{one.driver}'" for one in known().values())
        )
    if driver not in ("", database.driver):
        raise ValueError(
            f"store has the driver {driver!r}; for {backend} it must be {database.driver!r}, "
            "a synchronous driver that runs in Trio's threads"
        )
    return database
