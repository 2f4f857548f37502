"""What `make mcp-check` makes of what it has seen. The check itself is run by hand."""

import contextlib
import logging
import sys

import pytest

pytest.importorskip("mcp")

from mcp_check import __main__ as check
from mcp_check import verdict
from mcp_check.common import Seen

SOCKETS = "postgresql with sockets"
ALONE = {"own worker": 0.010, "own worker, processor": 0.010}


def seen(way: str, **times: float) -> Seen:
    """Return what a way has shown, with blanks in the names."""
    one = Seen(way)
    one.times = {name.replace("__", ", ").replace("_", " "): took for name, took in times.items()}
    return one


def test_targets_are_held_against_the_sdk_alone() -> None:
    """Of one way; the others are shown beside it, and judged by nobody."""
    alone = Seen("alone")
    alone.times = ALONE
    ours = {"own_worker": 0.015, "other_worker": 0.031, "own_worker__processor": 0.016}
    found = {"alone": alone, SOCKETS: seen(SOCKETS, **ours), "sqlite": seen("sqlite", **ours)}
    judged = f"{SOCKETS}: a call at the"
    shown = "sqlite: a call at the"
    assert list(verdict.targets(found)) == [
        (False, f"{judged} own worker, processor time: 1.60 x the SDK alone (target 1.5 x)"),
        (True, f"{judged} own worker, median: 1.50 x the SDK alone (target 1.5 x)"),
        (False, f"{judged} other worker, median: 3.10 x the SDK alone (target 3 x)"),
        (None, f"{shown} own worker, processor time: 1.60 x the SDK alone"),
        (None, f"{shown} own worker, median: 1.50 x the SDK alone"),
        (None, f"{shown} other worker, median: 3.10 x the SDK alone"),
    ]


def test_times_are_held_against_seconds() -> None:
    """Those of a thousand sessions and events only."""
    load = "1000 sessions, 100 calls/s through the other worker, p99"
    found = {way: Seen(way) for way in ("postgresql", SOCKETS, "fastmcp on postgresql")}
    for one in found.values():
        one.times = {load: 0.12, "replay of 1000 events": 0.05, "replay of 10 events": 9.0}
    replay = "replay of 1000 events: 50.0 ms"
    assert list(verdict.targets(found)) == [
        (None, f"postgresql: {load}: 120.0 ms"),
        (True, f"postgresql: {replay} (target 50 ms)"),
        (False, f"{SOCKETS}: {load}: 120.0 ms (target 100 ms)"),
        (True, f"{SOCKETS}: {replay} (target 50 ms)"),
        (None, f"fastmcp on postgresql: {load}: 120.0 ms"),
        (None, f"fastmcp on postgresql: {replay}"),
    ]


@pytest.mark.parametrize(
    ("ways", "keeps", "code"),
    [("alone", False, 2), (f"alone,{SOCKETS}", True, 0), (SOCKETS, False, 1)],
)
def test_the_exit_code_tells_promises_from_targets(
    ways: str,
    keeps: bool,  # noqa: FBT001 -- a parameter
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A missed target is printed, and fails nothing; the SDK alone promises nothing."""

    async def run(way: str, *_: object) -> Seen:
        one = Seen(way)
        one.aim(False, "something else")
        one.note(keeps and way != "alone", "something")
        one.times = {"replay of 1000 events": 1.0}
        return one

    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(check, "surroundings", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(sys, "argv", ["mcp_check", "--ways", ways])
    assert check.main() == code
    assert logging.root.manager.disable == 0, "who calls it goes on logging"
    printed = capsys.readouterr()
    assert ("slow postgresql with sockets: replay" in printed.out) == (SOCKETS in ways)
    assert ("slow postgresql with sockets: something else" in printed.out) == (SOCKETS in ways)
    assert ("lost alone: something" in printed.out) == ("alone" in ways)
    assert ("nothing was run that promises anything" in printed.err) == (code == 2)
    assert printed.out.startswith(f"mcp_check --ways '{ways}'" if " " in ways else "mcp_check")


@pytest.mark.parametrize(
    "options",
    ["--sessions 0", "--rate -1", "--seconds nan", "--calls 1.5", "--ways here", "--listeners x"],
)
def test_options_that_make_no_sense_are_refused(
    options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a sentence, before anything is started."""
    monkeypatch.delattr(check, "surroundings")  # nothing starts
    monkeypatch.setattr(sys, "argv", ["mcp_check", *options.split()])
    with pytest.raises(SystemExit) as refused:
        check.main()
    assert refused.value.code == 2
    assert f"argument {options.split(maxsplit=1)[0]}: " in capsys.readouterr().err
