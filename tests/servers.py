"""Roles and databases of a PostgreSQL that a test makes, and removes again."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

__all__ = ["make_database", "make_role", "run_sql"]


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
