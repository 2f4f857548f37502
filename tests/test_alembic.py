"""The how-to for Alembic, command by command, on real databases; each in a process of its own."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from soak import longer
from test_database_schema import Database, open_and_add
from warm import Program

from trio_sessions.stores.database import DatabaseStore, include_object, metadata

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "tests/schemas"
HOWTO = (ROOT / "docs/howto/alembic.md").read_text("utf-8")

# Alembic configures the logging of its process, so it has one of its own.
RUN = """
import sys
from alembic.config import main

for command in sys.argv[1:]:
    print("$", command, flush=True)
    main(argv=eval(command), prog="alembic")
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", HOWTO, re.MULTILINE | re.DOTALL)


def commands(*names: str) -> list[list[str]]:
    """Return the how-to's commands of Alembic of these names, in its order."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    told = [
        [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', line)[1:]]
        for line in lines
        if line.startswith("alembic ")
    ]
    return [one for one in told if one[0] in names]


class Project:
    """A folder with an environment of Alembic, made as the how-to says."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self.database = database
        self.run(*commands("init"))
        [line] = blocks("ini")
        url = database.url.render_as_string(hide_password=False).replace("%", "%%")
        told = line.replace("sqlite:///sessions.db", url).strip()
        edited = self.edit("alembic.ini", r"^sqlalchemy\.url = .*$", told)
        assert edited == 1

    def run(self, *of_alembic: list[str], fails: bool = False) -> str:
        done = Program(RUN, *map(repr, of_alembic), folder=self.folder)
        told = "".join(done.communicate(60))
        assert (done.returncode != 0) == fails, told
        return told

    def edit(self, file: str, pattern: str, new: str) -> int:
        path = self.folder / file
        text, count = re.subn(pattern, lambda _: new, path.read_text("utf-8"), flags=re.MULTILINE)
        path.write_text(text, "utf-8")
        return count

    def target_our_tables(self) -> None:
        target = next(one for one in blocks("python") if "target_metadata" in one)
        assert self.edit("migrations/env.py", r"^target_metadata = None$", target) == 1

    def revision(self) -> Path:
        """Let Alembic write the migration, and return it."""
        versions = self.folder / "migrations/versions"
        before = set(versions.glob("*.py"))
        self.run(*commands("revision"))
        [made] = set(versions.glob("*.py")) - before
        return made.relative_to(self.folder)


BOTH = pytest.mark.parametrize("project", ["sqlite", "postgresql"], indirect=True)
ONE = pytest.mark.parametrize(
    "project", ["sqlite", pytest.param("postgresql", marks=longer)], indirect=True
)


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    fixture = "sqlite_url" if request.param == "sqlite" else "empty_schema"
    database = Database(request.param, request.getfixturevalue(fixture))
    folder = tmp_path / "project"
    folder.mkdir()
    yield Project(folder, database)
    database.engine.dispose()


def storage(database: Database) -> list[str]:
    if database.name == "sqlite":
        return []
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT concat_ws(' ', relname, relpersistence, array_to_string(reloptions, ' ')) "
            "FROM pg_class WHERE relnamespace = CAST(current_schema() AS regnamespace) "
            "AND relname NOT LIKE 'alembic%%' ORDER BY 1"
        )
        return list(found.scalars())


@BOTH
async def test_migrations_create_our_tables(project: Project, tmp_path: Path) -> None:
    """They are those that the store would create, and Alembic then finds nothing to do."""
    project.target_our_tables()
    revision = project.revision()
    if project.database.name == "postgresql":
        [extra] = blocks("py")
        end = "    # ### end Alembic commands ###"
        lines = "".join(f"\n    {line}" for line in extra.splitlines())
        path = project.folder / revision
        text = path.read_text("utf-8")
        path.write_text(text.replace(end, end + lines, 1), "utf-8")
    project.run(*commands("upgrade", "check"))
    project.database.execute("DROP TABLE alembic_version")
    made, options = project.database.tables(), storage(project.database)
    await open_and_add(DatabaseStore(project.database.url, create_tables=False))
    assert project.database.tables() == made
    metadata().drop_all(project.database.engine)
    await open_and_add(DatabaseStore(project.database.url))
    assert project.database.tables() == made
    assert storage(project.database) == options


@ONE
async def test_migrations_upgrade_our_tables(project: Project) -> None:
    """What a version adds is found by autogenerate, and does for the store."""
    kept = (KEPT / f"{project.database.name}-0.sql").read_text("utf-8")
    project.database.execute(*(one for one in kept.split(";\n") if one.strip()))
    project.target_our_tables()
    revision = (project.folder / project.revision()).read_text("utf-8")
    there = set(re.findall(r"CREATE TABLE (\w+)", kept))
    created = set(re.findall(r"op\.create_table\(\s*'(\w+)'", revision))
    assert created == metadata().tables.keys() - there
    assert "trio_schema" in created
    project.run(*commands("upgrade", "check"))
    await open_and_add(DatabaseStore(project.database.url, create_tables=False))


@ONE
async def test_migrations_leave_our_tables_alone(project: Project) -> None:
    """With the function they neither see nor drop them; without it they would."""
    await open_and_add(DatabaseStore(project.database.url))
    empty = "import sqlalchemy\n\ntarget_metadata = sqlalchemy.MetaData()"
    assert project.edit("migrations/env.py", r"^target_metadata = None$", empty) == 1
    said = project.run(*commands("check"), fails=True)
    assert "trio_sessions" in said
    [imported] = [one for one in blocks("python") if "include_object" in one]
    [argument] = [one.strip() for one in blocks("text")]
    assert (
        project.edit(
            "migrations/env.py",
            r"^from alembic import context$",
            f"{imported}\nfrom alembic import context",
        )
        == 1
    )
    assert project.edit("migrations/env.py", r"target_metadata=target_metadata", argument) == 2
    assert "No new upgrade operations" in project.run(*commands("check"))


def test_the_function_for_alembic_spares_our_tables_only() -> None:
    """Our tables, and indexes on them, are left out; everything else is compared."""

    class Index:
        def __init__(self, table: str) -> None:
            self.table = type("Table", (), {"name": table})

    reflected = True  # found in the database
    assert not include_object(object(), "trio_sessions", "table", reflected, None)
    assert not include_object(Index("trio_messages"), "ix", "index", reflected, None)
    assert include_object(object(), "users", "table", reflected, None)
    assert include_object(Index("users"), "ix", "index", reflected, None)
    assert include_object(object(), "app_sessions", "table", reflected, None)
    ours = partial(include_object, table_prefix="app_")
    assert not ours(object(), "app_sessions", "table", reflected, None)
    assert ours(object(), "trio_sessions", "table", reflected, None)
    with pytest.raises(ValueError, match="table_prefix"):
        partial(include_object, table_prefix="Ä")(object(), "x", "table", reflected, None)
