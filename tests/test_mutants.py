"""`make mutants`: the faults that it makes, the order, what notices them, and when it fails."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mutants.judging import Explained, Judgement
from mutants.meeting import Meeting
from mutants.mutant import Mutant
from mutants.running import Copy, Result, Results, Runner, in_order, record

CODE = """\
from functools import cache

MOST = 2


@cache
def most() -> int:
    return MOST * 1


most()


class Box:
    def __init__(self) -> None:
        self.kept: list[int] = []

    @property
    def is_full(self) -> bool:
        return len(self.kept) >= most()

    def put(self, what: int) -> None:
        while self.is_full:
            self.kept.pop(0)
        self.kept.append(what)

    def hint(self) -> int:
        return self.kept[0] or 0
"""
TESTS = """\
from pathlib import Path

from trio_sessions.box import Box


def test_a_box_is_full():
    box = Box()
    box.kept = [1, 2]
    assert box.is_full


def test_a_box_keeps_two():
    box = Box()
    for what in (1, 2, 3):
        box.put(what)
    assert box.kept == [2, 3]


def test_a_box_gives_a_hint():
    box = Box()
    box.put(7)
    box.hint()
    chance = Path("chance")
    if chance.exists():
        chance.unlink()
        raise AssertionError("only this time")
"""


def mutations(text: str) -> list[str]:
    return [f"{one.function}: {one.mutation}" for one in make_mutants("one.py", text)]


def make_mutants(module: str, text: str) -> list[Mutant]:
    """Import what makes them where it is needed: most processes of the tests never do."""
    from mutants.making import make_mutants

    return list(make_mutants(module, text))


def test_every_kind_of_fault_is_made_where_it_makes_sense() -> None:
    """Conditions, constants, statements and arguments change; types, decorators, logs do not."""
    assert mutations(
        "import logging\n"
        "logger = logging.getLogger(3)\n"
        "@keep(1)\n"
        "def find(one: int | 2, n: int = 4):\n"
        '    """Say 1."""\n'
        "    assert one != 1\n"
        "    if one and not n:\n"
        '        logger.info("%d of %d", one, 5)\n'
        "        one.two = call(one, n, three=True)\n"
        "    for x in one:\n"
        "        break\n"
        "    raise ValueError(6)\n"
    ) == [
        ": logger = logging.getLogger(3) => logger = logging.getLogger(4)",
        "find: def find(one: int | 2, n: int = 4): => def find(one: int | 2, n: int = 5):",
        "find: if one and not n: => if not (one and not n):",
        "find: if one and not n: => if one or not n:",
        "find: if one and not n: => if one and n:",
        'find: logger.info("%d of %d", one, 5) => pass',
        "find: one.two = call(one, n, three=True) => pass",
        "find: one.two = call(one, n, three=True) => one.two = call(n, one, three=True)",
        "find: one.two = call(one, n, three=True) => one.two = call(one, n, )",
        "find: one.two = call(one, n, three=True) => one.two = call(one, n, three=False)",
        "find: break => continue",
        "find: raise ValueError(6) => pass",
    ]


def test_a_fault_is_known_again_by_its_text() -> None:
    """Lines before it and comments may change; the second of the same text is told apart."""
    before = mutations("def f():\n    a(\n        1,\n    )\n    a(1)\n    a(1)\n")
    after = mutations(
        '"""New."""\n\ndef f():\n    a(\n        1,\n    )\n    a(1)  # why\n    a(1)\n'
    )
    assert after == before
    assert before == [
        "f: a( 1, ) => pass",
        "f: 1, => 2,",
        "f: a(1) => pass",
        "f: a(1) => a(2)",
        "f: a(1) => pass (2)",
        "f: a(1) => a(2) (2)",
    ]


def test_what_is_left_out_leaves_the_lines_where_they_are() -> None:
    """Functions are known again by their first line, and coverage by all of them."""
    text = "def f():\n    a(\n        1,\n        b=2,\n    )\n\ndef g():\n    pass\n"
    for one in make_mutants("one.py", text):
        compile(one.source, "one.py", "exec")
        assert one.source.splitlines().index("def g():") == 6, str(one)
        assert one.lines == range(2, 6), "the tests of a statement meet all of it"


def test_the_first_of_the_order_are_a_sample_of_each_module() -> None:
    """Whatever time there is: the modules have their share; the seed alone decides which."""
    long, short = ("def f():\n" + "    a(1)\n" * n for n in (60, 15))
    made = make_mutants("long.py", long) + make_mutants("short.py", short)
    assert len(made) == 150
    order = in_order(made, 1)
    assert Counter(one.module for one in order[:50]) == {"long.py": 40, "short.py": 10}
    assert order == in_order(reversed(made), 1) != in_order(made, 2)


def test_what_is_set_is_looked_for_where_it_is_read() -> None:
    """The test that reads the attribute is first, though it takes longer and meets no more."""
    text = "def f(me):\n    me.seen = 0\n\ndef g(me):\n    a(me.seen)\n\ndef h(me):\n    b()\n"
    [mutant] = [one for one in make_mutants("one.py", text) if "=> me.seen = 1" in one.mutation]
    seconds = {"t.py::sets": 0.1, "t.py::reads": 2.0, "t.py::other": 0.2}
    meeting = Meeting(files={"t.py": "as it is"}, seconds=seconds)
    meeting.lines = {
        "one.py": {2: [*seconds], 5: ["t.py::reads"], 8: ["t.py::other"]},
    }
    assert meeting.tests(mutant, patience=0.1) == ["t.py::reads"]


def test_the_tests_of_a_line_are_the_quick_and_close_ones_first(tmp_path: Path) -> None:
    """Up to the patience, those with a server last; what is kept is read as it was."""
    [mutant] = make_mutants("one.py", "def f():\n    break\n\n\nx = y\n")
    meeting = Meeting(
        files={"tests/test_a.py": "as it is"},
        seconds={f"tests/test_a.py::{name}": 1.0 for name in ("wide", "close", "far", "pg")}
        | {"tests/test_a.py::slow": 9.0},
        postgresql=["tests/test_a.py::pg"],
    )
    wide, close, far, pg, slow = meeting.seconds
    meeting.lines = {"one.py": {2: [slow, pg, wide, close]}, "two.py": {1: [far, wide]}}
    assert meeting.tests(mutant, patience=60.0) == [close, wide, slow, pg]
    assert meeting.tests(mutant, patience=2.0) == [close, wide, pg], "those have as long again"
    assert meeting.tests(mutant, patience=0.1) == [close], "one at least"
    meeting.lines["one.py"][3] = [wide]
    meeting.lines["one.py"][4] = [wide]
    assert meeting.tests(mutant, patience=0.1) == [wide], "it uses what the others only make"
    del meeting.lines["one.py"][3], meeting.lines["one.py"][4]
    meeting.save(tmp_path / "meeting.json")
    assert Meeting.load(tmp_path / "meeting.json") == meeting
    assert meeting.mark(wide) != meeting.mark(close)
    meeting.forget(["tests/test_a.py"])
    assert meeting.tests(mutant, patience=60.0) == []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a module, a test that looks, and one that does not."""
    root = tmp_path / "project"
    (root / "trio_sessions").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (root / "trio_sessions" / "__init__.py").write_text("")
    (root / "trio_sessions" / "box.py").write_text(CODE)
    (root / "tests" / "test_box.py").write_text(TESTS)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Iterator[Copy]:
    with closing(Copy(project, tmp_path / "copy")) as copy:
        yield copy


def test_each_fault_meets_the_tests_of_its_lines(project: Path, tmp_path: Path, copy: Copy) -> None:
    """What is noticed, what survives, what hangs; what is known is not run again."""
    made = {one.mutation: one for one in make_mutants("trio_sessions/box.py", CODE)}
    meeting = record(copy, tmp_path, ["trio_sessions/box.py"], postgresql=False)
    assert list(meeting.seconds) == [
        "tests/test_box.py::test_a_box_is_full",
        "tests/test_box.py::test_a_box_keeps_two",
        "tests/test_box.py::test_a_box_gives_a_hint",
    ]
    path = tmp_path / "results.jsonl"
    results = Results(path, {"trio_sessions/box.py": "as it is"})
    runner = Runner(copy, meeting, results, 60.0)
    copy.close()  # as if it had been recorded before

    def run(mutation: str) -> tuple[str, str]:
        result = runner.run(made[mutation])
        return result.verdict, result.by.partition("::")[2]

    full = "return len(self.kept) >= most() => return len(self.kept) > most()"
    assert run(full)[0] == "killed"
    (copy.path / "chance").touch()
    assert run("return self.kept[0] or 0 => return self.kept[0] or 1")[0] == "survived"
    assert not (copy.path / "chance").exists(), "that a test fails by chance notices nothing"
    assert run("return self.kept[0] or 0 => return self.kept[1] or 0") == (
        "killed",
        "test_a_box_gives_a_hint",
    )
    assert run("MOST = 2 => MOST = 3")[0] == "killed", "needs an import"
    cached = made["return MOST * 1 => return MOST * 2"]
    assert len(meeting.tests(cached, patience=60.0)) == 3, "whoever finds it in the cache, too"
    assert run(cached.mutation)[0] == "killed", "what was cached before was without the fault"
    hangs = made["self.kept.pop(0) => pass"]
    tests = meeting.tests(hangs, patience=60.0)
    assert copy.run(hangs, tests, dict.fromkeys(tests, 0.5))["verdict"] == "timeout"
    assert copy.run(made[full], tests, {})["verdict"] == "killed", "the server goes on"

    again = Runner(copy, meeting, Results(path, {"trio_sessions/box.py": "as it is"}), 60.0)
    assert again.knows(made[full])
    other = Runner(copy, meeting, Results(path, {"trio_sessions/box.py": "changed"}), 60.0)
    assert not other.knows(made[full])


def judge(made: list[Mutant], survivors: int, *explained: Explained) -> Judgement:
    verdicts = ["survived" if at < survivors else "killed" for at in range(len(made))]
    results = {
        one: Result(mutant=str(one), verdict=verdict, module="")
        for one, verdict in zip(made, verdicts, strict=True)
    }
    return Judgement(made, results, explained, killed_at_first=len(made) - 2 * survivors)


def explain(mutant: Mutant, **changes: str) -> Explained:
    about = {"module": mutant.module, "function": mutant.function, "mutation": mutant.mutation}
    return Explained(**{"kind": "accepted"} | about | changes, why="nobody reads it")


def test_it_fails_on_whatever_is_not_explained() -> None:
    """Survivors have to be explained, explanations to be of what is there, and 95 % are killed."""
    made = make_mutants("one.py", "def f():\n" + "    a(1)\n" * 50)
    assert judge(made, 0).is_good
    assert judge(made, 1).open == made[:1]
    assert not judge(made, 1).is_good
    assert judge(made, 1, explain(made[0])).is_good
    gone = explain(made[0], function="g")
    assert judge(made, 1, explain(made[0]), gone).stale == [gone]
    assert not judge(made, 1, explain(made[0]), gone).is_good
    assert judge(made, 1, explain(made[0]), explain(made[0], module="other.py")).is_good
    explained = [explain(one) for one in made]
    assert judge(made, 5, *explained).is_good
    assert not judge(made, 6, *explained).is_good, "94 %"


def test_equivalents_alone_leave_the_score() -> None:
    """No test can kill them; what is merely accepted counts as not killed, and both are said."""
    made = make_mutants("one.py", "def f():\n" + "    a(1)\n" * 50)
    equivalents = [explain(one, kind="equivalent") for one in made[:20]]
    accepted = [explain(one) for one in made[20:]]
    judged = judge(made, 24, *equivalents, *accepted)
    assert (judged.raw_score, judged.score) == (0.76, 0.95)
    assert judged.is_good
    assert "76.0% killed, 95.0% without equivalents" in judged.summary
    assert not judge(made, 25, *equivalents, *accepted).is_good
    assert judge(made, 0, *equivalents).score == 1.0, "one that was killed after all counts"
    with pytest.raises(ValueError, match="'hard' is no kind"):
        explain(made[0], kind="hard")


def test_the_report_has_the_figures_of_each_module() -> None:
    """The rows of a table add up."""
    made = make_mutants("one.py", "def f():\n" + "    a(1)\n" * 50)
    explained = [explain(made[0]), explain(made[1], kind="equivalent")]
    report = judge(made, 3, *explained).report(seed=3)
    assert "| `one.py` | 100 | 100 | 97 | 0 | 1 | 1 | 1 |" in report
    assert "| **all** | 100 | 100 | 97 | 0 | 1 | 1 | 1 |" in report
    assert "97.0% were noticed" in report
    assert "98.0% without the equivalents" in report
    assert "When this sample was run first, 94.9% were noticed" in report


def test_what_was_noticed_at_first_is_kept(tmp_path: Path) -> None:
    """Of the module as it is now: whoever writes a test for a survivor does not change it."""
    noticed, met, changed = make_mutants("one.py", "def f():\n    a()\n    b()\n    c()\n")
    results = Results(tmp_path / "results.jsonl", {"one.py": "as it was"})
    results.note(changed, verdict="killed")
    results = Results(tmp_path / "results.jsonl", {"one.py": "as it is"})
    for mutant, verdict in ((noticed, "killed"), (met, "survived"), (changed, "survived")):
        results.note(mutant, verdict=verdict)
    results.note(met, verdict="killed")
    for one in results, Results(tmp_path / "results.jsonl", {"one.py": "as it is"}):
        assert one.count_killed_at_first([noticed, met, changed]) == 1
