"""The shape of the package: small files, rules with their records, facts with their owners."""

import ast
import re
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trio_sessions"
FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path.read_text("utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
LINES = {name: text.count("\n") for name, text in FILES.items()}
LONG = sorted(name for name, lines in LINES.items() if lines > 400)
RULES = sorted(name for name, text in FILES.items() if re.search(r"\binvariants? \d", text))
RECORD = re.compile(r"docs/decisions/(\d{4}-[a-z][a-z-]*\.md)")
WRITER = (ROOT / "docs/decisions/0009-one-writer.md").read_text("utf-8")
OWNERS = re.findall(r"^\| (.+?) \| (.+?) \|$", WRITER, re.MULTILINE)[2:]
"""Each fact, and who owns it; without the head of the table."""


def words_of(name: str) -> str:
    """Return the docstring of a module, with nothing but blanks between the words."""
    return " ".join((ast.get_docstring(ast.parse(FILES[name])) or "").split())


# ---- size ----


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    """One concept a file; half of them have at most 150 lines."""
    assert [name for name, lines in LINES.items() if lines >= 450] == []
    assert median(LINES.values()) <= 150


@pytest.mark.parametrize("name", LONG)
def test_a_long_file_says_why_it_is_long(name: str) -> None:
    """In its docstring: whoever adds to it reads that first."""
    assert re.search(r"\b[Oo]ver 400 lines\b", words_of(name))


# ---- records, and owners ----


@pytest.mark.parametrize("name", RULES)
def test_whoever_keeps_an_invariant_names_a_record(name: str) -> None:
    """Where a rule comes from is found beside the code that keeps it."""
    named = RECORD.findall(words_of(name))
    assert named
    assert [one for one in named if not (ROOT / "docs/decisions" / one).is_file()] == []


def test_each_fact_has_one_row_and_owners_that_exist() -> None:
    """The table of the decision is not about files that have gone."""
    facts = [fact for fact, _ in OWNERS]
    assert len(facts) == len(set(facts)) > 30
    named = {one for _, owner in OWNERS for one in re.findall(r"`([\w/]+)`", owner)}
    assert named - FILES.keys() == set()
    assert [fact for fact, owner in OWNERS if not re.match(r"`_[\w/]+`", owner)] == []


def test_whoever_says_that_it_owns_a_fact_is_in_the_table() -> None:
    """But for the stores, which have decisions of their own."""
    said = {
        name
        for name in FILES
        if "one owner" in FILES[name] and not name.startswith("stores/")
        if re.search(r"\bone owner of\b", words_of(name))
    }
    named = {re.findall(r"`([\w/]+)`", owner)[0] for _, owner in OWNERS}
    assert said
    assert said - named == set()


# ---- who writes ----


def calls_of(name: str, method: str) -> list[str]:
    """Return what a file calls this method of, as it is written there."""
    return [
        ast.unparse(node.func.value)
        for node in ast.walk(ast.parse(FILES[name]))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
    ]


def test_only_the_writer_commits() -> None:
    """What the registry writes has one order, so it goes one way: writer, edge, store."""
    house = [
        name
        for name, text in FILES.items()
        if "commit" in text and name.split("/")[0] not in {"stores", "testing", "cli"}
    ]
    assert {name: calls_of(name, "commit") for name in house if calls_of(name, "commit")} == {
        "_writer": ["self._edge"]
    }
    named = [
        name
        for name in house
        for node in ast.walk(ast.parse(FILES[name]))
        if isinstance(node, ast.Attribute) and node.attr in {"commit", "commit_at_once"}
    ]
    assert sorted(set(named)) == ["_edge", "_writer"]
