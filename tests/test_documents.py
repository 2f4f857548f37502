"""The documents: their examples run, their links lead somewhere, their figures were measured."""

import contextlib
import inspect
import json
import logging
import os
import re
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from trio_sessions import Limits, open_registry
from trio_sessions.transports import StreamTransport

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if "_build" not in path.parts
)
FILE_OR_SESSION = re.compile(
    r"^```\{code-block\} (python|console)\n:caption: ([^\n]+)\n\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
DECISION = re.compile(r"\b\d{4}-[a-z][\w.-]*\b")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def read(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def run_blocks(document: str) -> dict[str, Any]:
    """Run the fenced Python of a document from top to bottom, in one namespace."""
    parsed = Document.parse(str(ROOT / document), PythonCodeBlockParser())
    parsed.namespace["__name__"] = "document"
    for example in parsed.examples():
        example.evaluate()
    return parsed.namespace


# ---- examples ----


@pytest.mark.parametrize("document", DOCUMENTS)
def test_fenced_python_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader copies works as it stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("trio_sessions"), "handlers", [])  # some add their own
    run_blocks(document)


async def test_the_readme_serves_connections_as_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program registers a client, answers it, survives a bad one, and forgets both."""
    monkeypatch.chdir(tmp_path)
    main = run_blocks("README.md")["main"]
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(main, 0)
            port = listener.socket.getsockname()[1]
            async with open_registry("sqlite:///sessions.db") as elsewhere:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    client = StreamTransport(stream)
                    hello = await client.receive()
                    assert isinstance(hello, dict)
                    located = await elsewhere.locate_session(hello["session"])
                    assert located == hello["worker"] != elsewhere.worker_id
                    await client.send([1, {"two": None}])
                    assert await client.receive() == {"echo": [1, {"two": None}]}
                async with await trio.open_tcp_stream("127.0.0.1", port) as bad:
                    await bad.send_all(b"this is not JSON\n")
                    while await bad.receive_some():
                        pass  # a greeting, then the end
                while await elsewhere.session_exists(hello["session"]):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        assert connection.execute("SELECT count(*) FROM trio_sessions").fetchone() == (0,)


# ---- the tutorial ----


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Tutorial:
    """Its files in a folder, its commands, and what they are said to print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions: list[tuple[str, list[str], str]] = []
        text = read("docs/tutorial.md")
        for port in ("8001", "8002"):
            text = text.replace(port, str(free_port()))
        for language, caption, block in FILE_OR_SESSION.findall(text):
            if language == "python":
                (folder / caption).write_text(block, "utf-8")
                continue
            command, arguments, printed = [], "", block
            if block.startswith("$ python "):
                arguments, _, printed = block.removeprefix("$ python ").partition("\n")
                command = [sys.executable, *arguments.split()]
            self.sessions.append((caption, command, printed))

    def next(self, caption: str) -> tuple[list[str], str]:
        """Return the command and the output of the next console, which must be this one."""
        found, command, printed = self.sessions.pop(0)
        assert found == caption
        return command, printed

    def rows(self) -> list[str]:
        """Return whose sessions are stored."""
        with contextlib.closing(sqlite3.connect(self.folder / "sessions.db")) as connection:
            return [name for (name,) in connection.execute("SELECT session_id FROM trio_sessions")]

    async def run(self, command: list[str]) -> str:
        ran = await trio.run_process(command, cwd=self.folder, capture_stdout=True)
        return ran.stdout.decode()

    @contextlib.asynccontextmanager
    async def started(self, caption: str) -> AsyncIterator["Program"]:
        """Start a program that stays, and wait for what it is said to print."""
        command, printed = self.next(caption)
        start = partial(
            trio.run_process,
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        async with trio.open_nursery() as nursery:
            program = Program(await nursery.start(start))
            await program.expect(printed)
            yield program
            nursery.cancel_scope.cancel()


class Program:
    def __init__(self, process: trio.Process) -> None:
        self.process = process

    async def expect(self, printed: str) -> None:
        assert self.process.stdout is not None
        received = b""
        while len(received) < len(printed.encode()):
            more = await self.process.stdout.receive_some()
            assert more, f"it ended after {received!r}"
            received += more
        assert received.decode() == printed


@pytest.mark.timeout(120)
async def test_the_tutorial_prints_what_it_says(tmp_path: Path) -> None:
    """Two workers on one SQLite file: found, moved, dead, swept, in this order."""
    tutorial = Tutorial(tmp_path)
    with trio.fail_after(100):
        command, printed = tutorial.next("first")
        first = (await tutorial.run(command)).splitlines()
        assert first[:-2] == printed.splitlines()[:-2]
        assert sorted(first[-2:]) == sorted(printed.splitlines()[-2:])  # they go at once
        async with (
            tutorial.started("workers") as red,
            tutorial.started("workers") as blue,
            tutorial.started("alice") as old_alice,
        ):
            command, printed = tutorial.next("bob")
            assert await tutorial.run(command) == printed
            async with tutorial.started("moved"):
                await old_alice.expect(tutorial.next("old alice")[1])
                blue.process.kill()
                await blue.process.wait()
                command, printed = tutorial.next("after the death")
                assert await tutorial.run(command) == printed
            command, printed = tutorial.next("after the lease")
            while tutorial.rows():  # to start a client that asks takes longer
                await trio.sleep(0.1)
            assert await tutorial.run(command) == printed
            assert tutorial.sessions == []
            red.process.send_signal(signal.SIGINT)
            await red.process.wait()
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        assert connection.execute("SELECT count(*) FROM trio_sessions").fetchone() == (0,)


# ---- links, commands, figures ----


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Every relative link has a target in the repository, and its heading is there."""
    for target, anchor in LINK.findall(read(document)):
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), f"{document} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text("utf-8")), f"{document}: #{anchor}"


def test_the_readme_leads_to_how_to_report_a_weakness() -> None:
    """And it says a way that is private, and names nobody."""
    assert "SECURITY.md" in {target for target, _ in LINK.findall(read("README.md"))}
    assert "report-a-weakness" in anchors(read("SECURITY.md"))
    assert "private security advisory in the repository" in read("SECURITY.md")
    assert not re.search(r"\S+@\S+", read("SECURITY.md")), "no address"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tests_that_are_named_exist(document: str) -> None:
    """Whoever doubts what is promised finds the test that shows it."""
    for file, name in TEST.findall(read(document)):
        assert f"def {name}(" in read(f"tests/{file}"), f"{document} names {name}"


def test_the_code_names_each_decision_by_a_name_that_is_right() -> None:
    """Whoever asks why a rule is hard finds the record, and nobody looks for one in vain."""
    records = {path.name for path in ROOT.glob("docs/decisions/[0-9]*.md")}
    code = "".join(path.read_text("utf-8") for path in ROOT.glob("trio_sessions/**/*.py"))
    assert set(DECISION.findall(code)) == records


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist(document: str) -> None:
    """What a document tells to `make` is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", read(document), re.MULTILINE)) <= targets


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    """Before anything else, a newcomer sees what to run."""
    first = re.search(r"^```sh\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make demo",
        "make test",
    ]
    assert read("README.md")[: first.start()].count("\n") < 6


def test_the_figures_of_the_readme_were_measured() -> None:
    """Each "so many times" is a ratio in the output of the benchmarks."""
    measured = [
        float(ratio) for ratio in re.findall(r"([\d.]+)x(?:\s|$)", read("docs/measurements.txt"))
    ]
    quoted = re.findall(r"(\d[\d.]*) times", read("README.md"))
    assert len(quoted) >= 4
    for figure in quoted:
        digits = len(figure.partition(".")[2])
        assert float(figure) in {round(ratio, digits) for ratio in measured}, figure


def test_the_figures_of_scaling_were_measured() -> None:
    """What is computed beyond begins with what the benchmark has printed."""
    printed, text = read("docs/scaling.txt"), read("docs/scaling.md")
    for pattern in (
        r"one after the other .* ([\d.,]+ ms)$",
        r"in use: ([\d,]+) bytes",
        r"process: ([\d,]+ MiB)",
        r"worker: (\d+) statements",
    ):
        figure = re.search(pattern, printed, re.MULTILINE)
        assert figure is not None, pattern
        assert figure[1] in text, figure[1]


def settings_in_readme() -> Iterator[tuple[str, str]]:
    section = read("README.md").partition("## Settings at a glance")[2].partition("\n## ")[0]
    yield from re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)


def test_the_readme_lists_every_setting_with_its_default() -> None:
    """No setting is missing and no default is stale."""
    parameters = dict(inspect.signature(open_registry).parameters)
    del parameters["store"]
    listed = dict(settings_in_readme())
    words = {"made fresh": None, "nothing": None, "none": Limits(), "no": False}
    defaults = {
        name: words[value] if value in words else float(value.replace(",", ""))
        for name, value in listed.items()
    }
    assert defaults == {name: parameter.default for name, parameter in parameters.items()}


def test_the_picture_is_what_its_script_draws(capsys: pytest.CaptureFixture[str]) -> None:
    """It is changed in the script, not by hand."""
    runpy.run_path(str(ROOT / "docs/pictures/draw_pass.py"), run_name="__main__")
    assert capsys.readouterr().out == read("docs/pictures/pass.svg")


def test_documents_name_no_machine() -> None:
    """No path of somebody's home or build folder."""
    for document in (*DOCUMENTS, "docs/measurements.txt", "constraints.txt"):
        for word in ("/home/", "/root", "/tmp/", "/work/", os.sep + "Users"):
            assert word not in read(document), document
    assert json.dumps(DOCUMENTS).count("tutorial") == 1
