"""What a doctor finds, for tests."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from trio_sessions.cli._doctor._examine import examine
from trio_sessions.cli._doctor._findings import Case, Finding, Level
from trio_sessions.stores.database._schema import tables

__all__ = ["contents", "look", "make_tables", "only"]


async def look(url: sa.URL, **case: Any) -> list[Finding]:
    """Return what is not as it should be."""
    found = await examine(Case(url=url, tables=tables("trio_"), **case))
    assert found, "it has looked at nothing"
    return [one for one in found if one.level is not Level.OK]


def only(found: list[Finding], check: str, level: Level, *, says: str, todo: str) -> None:
    """Assert that this is the one thing that was found, beside looks that it makes impossible."""
    found = [one for one in found if "looked at" not in one.says]
    assert [(one.check, one.level) for one in found] == [(check, level)], found
    assert says in found[0].says
    assert todo in found[0].todo


def make_tables(url: sa.URL) -> sa.URL:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    tables("trio_").metadata.create_all(engine)
    engine.dispose()
    return url


def contents(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}
