"""Roles, databases and a standby of a PostgreSQL that a test makes, and removes again."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

__all__ = ["make_database", "make_role", "make_standby", "run_sql"]


def run_sql(url: sa.URL, *statements: str) -> None:
    """Run statements, each a transaction of its own."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@contextmanager
def make_role(url: sa.URL, *settings: str) -> Iterator[sa.URL]:
    """Yield the URL of a role without any rights, which may connect.

    Args:
        url: of a superuser.
        settings: what follows ALTER ROLE … SET.
    """
    role = f"r_{uuid.uuid4().hex[:12]}"
    run_sql(url, f"CREATE ROLE {role} LOGIN", *(f"ALTER ROLE {role} SET {s}" for s in settings))
    try:
        yield url.set(username=role)
    finally:
        run_sql(url, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


@contextmanager
def make_database(url: sa.URL, *settings: str, encoding: str = "UTF8") -> Iterator[sa.URL]:
    """Yield the URL of a new database.

    Args:
        url: of a superuser.
        settings: what follows ALTER DATABASE … SET.
        encoding: the server's own for that database.
    """
    name = f"d_{uuid.uuid4().hex[:12]}"
    run_sql(
        url,
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
        *(f"ALTER DATABASE {name} SET {setting}" for setting in settings),
    )
    try:
        yield url.set(database=name)
    finally:
        run_sql(url, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def make_standby(url: sa.URL) -> Iterator[sa.URL]:
    """Yield the URL of a hot standby of the test suite's own server; skip where it is another's."""
    primary = url.query.get("host")
    if not isinstance(primary, str) or "TRIO_SESSIONS_TEST_POSTGRESQL_URL" in os.environ:
        pytest.skip("a standby is made of a server of the test suite's own only")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
        binaries = Path(found.scalar_one())
    if not (binaries / "pg_basebackup").exists():
        pytest.skip(f"no pg_basebackup in {binaries}")
    user = "pgserver" if os.geteuid() == 0 else None  # PostgreSQL does not run as root

    def run(program: str, *arguments: str) -> None:
        with log.open("wb") as said:  # no pipe: the server keeps it open
            result = subprocess.run(
                [binaries / program, *arguments],
                check=False,
                user=user,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=60,
            )
        assert result.returncode == 0, log.read_text()

    with tempfile.TemporaryDirectory(prefix="ts-sb-", ignore_cleanup_errors=True) as folder:
        if user is not None:
            shutil.chown(folder, user)
        data, log = f"{folder}/data", Path(folder) / "log"
        source = ("--host", primary, "--username", "postgres", "--pgdata", data)
        run("pg_basebackup", *source, "--write-recovery-conf", "--checkpoint", "fast")
        listens = f"-c unix_socket_directories={folder} -c listen_addresses="
        run("pg_ctl", "--pgdata", data, "--wait", "--options", listens, "start")
        try:
            yield url.update_query_dict({"host": folder})
        finally:
            run("pg_ctl", "--pgdata", data, "--mode", "immediate", "stop")
