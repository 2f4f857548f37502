"""Every warning and error that the package logs stands in the table for operators, and no other."""

import ast
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs/howto/log-lines.md"
LOGGER = re.compile(r'^logger = (?:logging\.getLogger|get_logger)\("([\w.]+)"\)', re.MULTILINE)
LOUD = {"warning", "error", "exception", "critical"}
ROW = re.compile(
    r"^\| `([^`]+)` \| `(trio_sessions[.\w]*)`, (\w+) \| (.+?) \| (.+?) \|$", re.MULTILINE
)

Line = tuple[str, str]
"""A logger, and the text that it is given, before its arguments are put in."""


parse = cache(ast.parse)  # of all modules, for each look


def lines_of(source: str) -> list[tuple[Line, str]]:
    """Return what a module logs loudly, with the level; "log" where a variable is called so.

    The logger of a function that is handed one is the function's name and "()".
    """
    name = re.search(
        r'^logger = (?:logging\.getLogger|get_logger)\("([\w.]+)"\)', source, re.MULTILINE
    )
    return list(_lines_in(parse(source), name and name[1]))


def _lines_in(node: ast.AST, logger: str | None) -> Iterator[tuple[Line, str]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if "logger" in {one.arg for one in parameters}:
            logger = f"{node.name}()"
    if isinstance(node, ast.Call):
        called = node.func
        if isinstance(called, ast.Attribute):
            on_logger = isinstance(called.value, ast.Name) and called.value.id == "logger"
            level = called.attr if on_logger and called.attr in {*LOUD, "log"} else ""
        else:
            level = called.id if isinstance(called, ast.Name) and called.id == "log" else ""
        if level:
            assert logger is not None, "who logs has a logger of the module, or is handed one"
            text = node.args[isinstance(called, ast.Attribute) and level == "log"]
            assert isinstance(text, ast.Constant), "a text is a constant: it can be looked up"
            yield (logger, str(text.value)), level
    for child in ast.iter_child_nodes(node):
        yield from _lines_in(child, logger)


def handed_by(source: str, function: str) -> set[str]:
    """Return the logger that a module hands to a function, if it calls it."""
    calls = [
        node
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == function
    ]
    if not calls:
        return set()
    name = re.search(
        r'^logger = (?:logging\.getLogger|get_logger)\("([\w.]+)"\)', source, re.MULTILINE
    )
    assert name is not None, "who hands a logger on has one of the module"
    for call in calls:
        handed = [*call.args, *(one.value for one in call.keywords)]
        assert any(isinstance(one, ast.Name) and one.id == "logger" for one in handed)
    return {name[1]}


def logged_by(sources: Collection[str]) -> dict[Line, str]:
    """Return what modules log loudly; what a function logs that is handed a logger, for each."""
    found: dict[Line, str] = {}
    for source in sources:
        for (logger, text), level in lines_of(source):
            loggers = {logger}
            if logger.endswith("()"):
                loggers = set().union(*(handed_by(one, logger[:-2]) for one in sources))
                assert loggers, f"nobody hands a logger to {logger}"
            found.update({(one, text): level for one in loggers})
    return found


@cache
def logged() -> dict[Line, str]:
    return logged_by(
        [
            path.read_text("utf-8")
            for path in sorted((ROOT / "trio_sessions").rglob("*.py"))
            if not {"testing", "cli"} & {*path.relative_to(ROOT).parts}
        ]
    )


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


HANDED = """
def keep(work, logger):
    def inner():
        log = logger.warning if work else logger.debug
        log("%s failed", work)
    inner()
"""
HANDS = """
logger = logging.getLogger("trio_sessions.{}")
keep("it", logger)
"""


def test_what_a_handed_logger_is_given_counts_for_each_that_hands_one() -> None:
    """So a row is missing where another module begins to call it; nobody may call it without."""
    assert lines_of(HANDED) == [(("keep()", "%s failed"), "log")]
    assert logged_by([HANDED, HANDS.format("x"), HANDS.format("y"), "other()"]) == {
        ("trio_sessions.x", "%s failed"): "log",
        ("trio_sessions.y", "%s failed"): "log",
    }
    with pytest.raises(AssertionError, match="nobody hands a logger"):
        logged_by([HANDED, "other()"])
    with pytest.raises(AssertionError, match="has one of the module"):
        logged_by([HANDED, 'keep("it", get())'])
    with pytest.raises(AssertionError):
        logged_by([HANDED, HANDS.format("x").replace(", logger", ", another")])


def test_a_module_that_logs_has_a_logger_or_is_handed_one() -> None:
    with pytest.raises(AssertionError, match="handed one"):
        lines_of('def keep(work):\n    log("c")\n')
