"""Every warning and error that the package logs stands in the table for operators, and no other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs/howto/log-lines.md"
LOUD = {"warning", "error", "exception", "critical"}
ROW = re.compile(
    r"^\| `([^`]+)` \| `(trio_sessions[.\w]*)`, (\w+) \| (.+?) \| (.+?) \|$", re.MULTILINE
)

Line = tuple[str, str]
"""A logger, and the text that it is given, before its arguments are put in."""


def lines_of(source: str) -> list[tuple[Line, str]]:
    """Return what a module logs loudly, with the level; "log" where a variable is called so."""
    tree = ast.parse(source)
    name = re.search(r'^logger = logging\.getLogger\("([\w.]+)"\)', source, re.MULTILINE)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute):
            on_logger = isinstance(called.value, ast.Name) and called.value.id == "logger"
            level = called.attr if on_logger and called.attr in {*LOUD, "log"} else ""
        else:
            level = called.id if isinstance(called, ast.Name) and called.id == "log" else ""
        if level:
            assert name is not None, "a module that logs has a logger of its own"
            text = node.args[isinstance(called, ast.Attribute) and level == "log"]
            assert isinstance(text, ast.Constant), "a text is a constant: it can be looked up"
            found.append(((name[1], str(text.value)), level))
    return found


def logged() -> dict[Line, str]:
    found: dict[Line, str] = {}
    for path in sorted((ROOT / "trio_sessions").rglob("*.py")):
        if not {"testing", "cli"} & {*path.relative_to(ROOT).parts}:
            found.update(lines_of(path.read_text("utf-8")))
    return found


def explained() -> dict[Line, str]:
    return {(row[2], row[1]): row[3] for row in ROW.finditer(DOCUMENT.read_text("utf-8"))}


def test_every_line_is_explained_and_nothing_else() -> None:
    """With its logger, as it stands in the code; one that is gone from the code goes here, too."""
    assert set(explained()) == set(logged())


def test_levels_are_those_of_the_code() -> None:
    levels = {"exception": "error", "log": "warning"}
    for line, level in logged().items():
        assert explained()[line] == levels.get(level, level), line


def test_each_row_says_what_it_means_and_what_to_do() -> None:
    """No cell of the table is empty, and none is broken off."""
    table = [one for one in DOCUMENT.read_text("utf-8").splitlines() if one.startswith("| `")]
    assert len(table) == len(explained())
    for row in ROW.finditer("\n".join(table)):
        assert len(row[4]) > 10
        assert len(row[5]) > 5


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ('logger.warning("a " "b %s", 1)', [(("trio_sessions.x", "a b %s"), "warning")]),
        ('log("c")', [(("trio_sessions.x", "c"), "log")]),
        ('logger.log(logging.WARNING, "d")', [(("trio_sessions.x", "d"), "log")]),
        ('logger.debug("quiet")', []),
    ],
)
def test_the_search_finds_what_is_loud(call: str, found: list[tuple[Line, str]]) -> None:
    """A look that finds nothing would prove nothing."""
    source = f'import logging\nlogger = logging.getLogger("trio_sessions.x")\n{call}\n'
    assert lines_of(source) == found
