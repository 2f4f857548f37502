"""A simulated fleet: whatever happens to the database, nobody is removed without a reason.

`make test` plays the profile ``dev``, the gate ``ci`` beside it (``make simulate``), and the soak
also as many steps as ``deep`` from a seed of chance, or from ``TRIO_SESSIONS_SEED``. Each switch of
`switches` turns one cure off: then the fleet has to fail, in the gate by a seed of its own, in the
soak by the profile ``ci``.
"""

import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from click.testing import CliRunner
from soak import SOAK, longer
from switches import SWITCHES, Switch
from unmeasured import unmeasured

from trio_sessions._logs import LogRoom
from trio_sessions.abc import Worker
from trio_sessions.stores.memory._workers import Workers
from trio_sessions.testing import (
    data_conformance,
    inspection_conformance,
    limit_conformance,
    log_conformance,
    mail_conformance,
    revocation_conformance,
    simulate,
    store_conformance,
)
from trio_sessions.testing._simulation import (
    DEEP,
    PROFILES,
    Planned,
    Run,
    SimulationReport,
    picture,
    play,
    run_once,
)
from trio_sessions.testing._simulation._clients import Client, Connection, Ended
from trio_sessions.testing._simulation._database import Database
from trio_sessions.testing._simulation._events import Log
from trio_sessions.testing._simulation._judge import Judge
from trio_sessions.testing._simulation._link import OPTIONAL, Link
from trio_sessions.testing._simulation._mixes import MIXES
from trio_sessions.testing._simulation._way import LinkFault, Network
from trio_sessions.testing._simulation._workers import SETTINGS, SimulatedWorker
from trio_sessions.testing.simulate import main
from trio_sessions.types import Presence

Check = Callable[[Callable[[], Any]], Awaitable[None]]

EVERYTHING: tuple[Check, ...] = (
    *store_conformance,
    *inspection_conformance,
    *revocation_conformance,
    *data_conformance,
    *limit_conformance,
    *log_conformance,
    *mail_conformance,
)

TRACED = 1000 if SOAK else 15
SEED = int(os.environ.get("TRIO_SESSIONS_SEED", str(time.time_ns() % 1_000_000)))


def told(run: Run) -> str:
    again = f"--run {run.seed} --steps {run.asked} --workers {run.workers} --mix {run.mix!r}"
    return f"{picture(run.events, run.workers)}\n{run.violations}\n{again}"


def check_all_is_well(report: SimulationReport, *, unfollowed: int) -> None:
    """Nobody was removed without a reason, and enough has happened.

    Args:
        report: of many runs.
        unfollowed: rules that had nothing to do, at most.
    """
    assert not report.failures, told(report.failures[0])
    assert sum(report.faults.values()) > report.steps / 10
    assert report.right["disconnected"] > 0
    assert report.right["taken over"] > 0
    assert len(report.rules_never_followed) <= unfollowed


@pytest.mark.timeout(4 * 3600 if SOAK else 300)
def test_nobody_is_removed_without_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """After every step, and in the end all is as it should be."""
    report = simulate(seed=SEED, steps=DEEP) if SOAK else play(PROFILES["dev"])
    if SOAK:
        with capsys.disabled():
            sys.stdout.write(f"seed {SEED}: {report.rate:.0f} steps a second, {report}\n")
    check_all_is_well(report, unfollowed=0 if SOAK else 15)


@longer
def test_nobody_is_removed_without_a_reason_in_ci() -> None:
    """In every run of the profile that has to find each switch."""
    check_all_is_well(play(PROFILES["ci"]), unfollowed=0)


def test_a_seed_gives_one_trace() -> None:
    """The same seed gives the same run, step for step; another one another."""
    first, again, other = (run_once(seed, steps=TRACED, workers=3) for seed in ("4", "4", "5"))
    assert first.events == again.events
    assert first.digest == again.digest
    assert other.digest != first.digest


def test_a_seed_gives_one_trace_in_every_process() -> None:
    """The order of hashes, which differs from process to process, decides nothing."""
    digests = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "trio_sessions.testing.simulate"]
        arguments = ["--run", "4", "--steps", str(TRACED), "--digest"]
        done = subprocess.run(
            [*command, *arguments],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.split()[1])
    assert digests == {run_once("4", steps=TRACED, workers=3).digest}


@unmeasured
@pytest.mark.parametrize("check", EVERYTHING, ids=lambda check: check.__name__)
async def test_the_simulated_database_keeps_the_contract(
    check: Check, autojump_clock: trio.testing.MockClock
) -> None:
    """It is a store as the others are, whatever parts are played."""
    network = Network(Database(), parts=OPTIONAL)
    async with network.running():
        await check(lambda: Link(network))


@unmeasured
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_a_cure_that_is_turned_off_is_missed(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation finds what the cure is there for."""
    switch.turn_off(monkeypatch)
    failed = run_once(switch.seed, steps=switch.steps, workers=switch.workers, mix=switch.mix)
    assert any(switch.complaint in one for one in failed.violations), failed.violations


@longer
@unmeasured
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_a_cure_that_is_at_work_is_not_missed(switch: Switch) -> None:
    """In the very runs in which it is missed otherwise."""
    well = run_once(switch.seed, steps=switch.steps, workers=switch.workers, mix=switch.mix)
    assert not well.violations, told(well)


@longer
@unmeasured
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_the_ci_profile_misses_a_cure(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some run of it fails as it must; those of the same mix come first, to find it soon."""
    planned = sorted(PROFILES["ci"], key=lambda one: one.mix != switch.mix)
    switch.turn_off(monkeypatch)
    runs = (run for one in planned for run in play([one]).failures)
    assert any(switch.complaint in one for run in runs for one in run.violations)


_DRAINS = {"reports of drains", "came back from a drain", "refused by a drain"}
_ORPHANS = {"adoptions that were won", "adoptions that were refused", "logs that were adopted"}
_QUESTIONS = {"sessions: there", "sessions: not there", "lists of sessions", "lists of workers"}


@pytest.mark.parametrize(
    ("mix", "seed", "judged"),
    [
        pytest.param("drains", "4", _DRAINS, marks=longer),
        ("lost drains", "5", _DRAINS),
        pytest.param("orphans", "4", _ORPHANS, marks=longer),
        ("lost orphans", "4", _ORPHANS),
        pytest.param("questions", "4", _QUESTIONS, marks=longer),
        ("lost questions", "6", {*_QUESTIONS, "workers: late"}),
    ],
)
def test_answers_are_held_against_what_is_true(mix: str, seed: str, judged: set[str]) -> None:
    """Of drains, of adoptions from workers that died, and of what operators ask."""
    run = run_once(seed, steps=80, workers=4, mix=mix)
    assert not run.violations, told(run)
    assert judged <= run.judged.keys()


def test_a_late_claim_is_refused_before_the_first_stamp() -> None:
    """Found by the fleet: a worker that had only had a pass did not know the database's clock."""
    found = run_once("14", steps=60, workers=3, mix="moves")
    assert not found.violations, told(found)


def test_whatever_a_registry_raises_comes_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it must not raise ends the run, and it is said how to see that once more."""

    async def fail(self: LogRoom, *details: object) -> int:
        raise TypeError("not for users")

    monkeypatch.setattr(LogRoom, "append", fail)
    with pytest.raises(ExceptionGroup) as raised:
        run_once("7", steps=60, workers=2, mix="words again")
    assert raised.value.__notes__ == ["in --run 7 --steps 60 --workers 2 --mix 'words again'"]


def test_the_command_reports() -> None:
    """Steps, faults, rules and removals are told, and the exit code is 0."""
    result = CliRunner().invoke(main, ["--seed", "3", "--steps", "60", "--workers", "2"])
    assert result.exit_code == 0, result.output
    for words in ("60 steps in 1 run,", "faults injected", "violations: 0 (", "rules followed"):
        assert words in result.output
    assert "rules never followed: " in result.output


def test_removals_are_counted_by_what_has_happened_to_them() -> None:
    """By a rule each; what the end of the run does to those who are left is none."""
    moves, revokes = (run_once("4", steps=60, workers=3, mix=mix) for mix in ("moves", "revokes"))
    assert 0 < moves.right["removed by the gateway"] <= moves.rules["remove"]
    assert moves.right["replaced on its worker"] > 0
    assert 0 < revokes.right["revoked"] <= revokes.rules["revoke"]
    assert "its worker leaves" not in moves.right, "no worker left"


def test_the_page_explains_the_words_of_the_report() -> None:
    """Those of faults, and of removals that its gateway has asked for."""
    page = Path(__file__).parent.parent / "docs/howto/simulated-fleet.md"
    text = page.read_text(encoding="utf-8")
    words = [one.value for one in (*LinkFault, *Ended) if one is not LinkFault.NONE]
    assert [one for one in words if f"`{one}`" not in text] == []


def test_the_command_reports_what_was_judged() -> None:
    """Answers of registries are counted by their kind."""
    arguments = ["--run", "4", "--steps", "40", "--workers", "4", "--mix", "questions"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "answers that were judged" in result.output
    assert "lists of sessions" in result.output


def test_the_command_plays_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, which its page tells."""
    kept = tmp_path / "simulation.md"
    two = {"dev": PROFILES["dev"][:2]}
    monkeypatch.setattr(sys.modules["trio_sessions.testing.simulate"], "PROFILES", two)
    result = CliRunner().invoke(main, ["--profile", "dev", "--report", str(kept)])
    assert result.exit_code == 0, result.output
    assert "20 steps in 2 runs, " in result.output
    text = kept.read_text(encoding="utf-8")
    assert text.startswith("20 steps in 2 runs from the profile dev, ")


def test_a_profile_plays_no_run_twice() -> None:
    """The short ones play every mix; the deep one has the runs of seed 1, as its page says."""
    for planned in PROFILES.values():
        assert len(set(planned)) == len(planned)
    for name in ("dev", "ci"):
        assert {one.mix for one in PROFILES[name]} == MIXES.keys()
    assert PROFILES["deep"][0] == Planned(seed="1-0", steps=150, workers=2, mix="all")
    assert sum(one.steps for one in PROFILES["deep"]) == DEEP


def test_the_command_keeps_its_report(tmp_path: Path) -> None:
    """As Markdown, for the documentation; one run alone has none."""
    kept = tmp_path / "simulation.md"
    arguments = ["--report", str(kept), "--workers", "2"]
    result = CliRunner().invoke(main, ["--seed", "3", "--steps", "30", *arguments])
    assert result.exit_code == 0, result.output
    text = kept.read_text(encoding="utf-8")
    assert text.startswith("30 steps in 1 run from seed 3, ")
    assert "Violations: **0** (" in text
    assert "| Rules followed | |\n| --- | ---: |\n| " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--run nosuch", "'nosuch' is no run; a failure names one"),
        ("--mix drains", "--mix is for one run: name it by --run"),
        ("--digest", "--digest is for one run"),
        ("--run 1-2 --seed 3", "--seed is for many runs: leave it out, or leave out --run"),
        ("--run 1-2 --report nowhere.md", "--report is for many runs"),
        ("--run 1-2 --profile dev", "--profile is for many runs"),
        ("--profile dev --steps 5", "a profile has its own --steps"),
        ("--profile ci --seed 1", "a profile has its own --seed"),
        ("--profile deep --workers 3", "a profile has its own --workers"),
    ],
)
def test_what_would_have_no_effect_is_refused(arguments: str, message: str) -> None:
    """With what to do instead."""
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_progress_is_told_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line now and then, on stderr."""
    monkeypatch.setattr(sys.modules["trio_sessions.testing.simulate"], "_EVERY", 0.0)
    result = CliRunner().invoke(main, ["--run", "3", "--steps", "5"])
    assert result.stderr.splitlines() == [f"{done} of 5 steps" for done in range(1, 6)]


def test_the_command_shows_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A violation is drawn, with what runs it again; the exit code is 1."""
    switch = SWITCHES[0]
    switch.turn_off(monkeypatch)
    arguments = ["--run", switch.seed, "--steps", str(switch.steps)]
    result = CliRunner().invoke(main, [*arguments, "--workers", str(switch.workers)])
    assert result.exit_code == 1
    assert "VIOLATION" in result.output
    assert f"--run {switch.seed} --steps {switch.steps}" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": 0}, "steps must be"), ({"workers": 1}, "workers"), ({"workers": 6}, "workers")],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match=message):
        simulate(seed=1, steps=arguments.get("steps", 1), workers=arguments.get("workers"))


async def test_rows_that_are_hidden_are_missed_by_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of twelve rows deleted at once three are hidden, or put back: too few for the brake."""
    log = Log()
    judge = Judge(log)
    database = judge.database = Database()
    worker = SimulatedWorker(
        0, Link(Network(database)), SETTINGS[0], trio.CancelScope(), trio.Event()
    )
    for number in range(12):
        client = judge.clients[f"s{number}"] = Client(f"s{number}")
        connection = Connection(client, worker, number, 0.0, judge.disconnected)
        client.connections.append(connection)
        judge.truncated[connection] = trio.current_time()
        database.truth.ended(worker.incarnation, f"s{number}", "deleted by hand", 0.0)
    ids = {f"s{number}" for number in range(12)}
    database.truth.told(worker.incarnation, ids, set())
    database.weather.hidden.update({"s9", "s10", "s11"})
    await judge.clients["s0"].newest.disconnect()
    assert not log.wrong
    database.weather.hidden.clear()
    await judge.clients["s1"].newest.disconnect()
    assert ["12 rows of its worker were deleted at once" in one for one in log.wrong] == [True]
    log.wrong.clear()
    database.truth.told(worker.incarnation, ids, {"s3", "s4", "s5"})
    await judge.clients["s2"].newest.disconnect()
    assert not log.wrong, "three were put back before it asked"


def test_a_clock_that_is_set_back_prolongs_no_doubt() -> None:
    """Found by the fleet: set back by an hour in the doubt, the database stayed in it for one."""
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    presence = Presence(session_ttl=60.0, cleanup_interval=20.0, stamp_interval=5.0, version="0")
    workers = Workers()
    workers.begin(worker, "one", presence, 5000.0, after="another")
    assert workers.is_in_doubt(5039.0)
    workers.set_right(1400.0)
    assert workers.is_in_doubt(1439.0)
    assert not workers.is_in_doubt(1441.0)
    assert workers.begin(worker, "two", presence, 1400.0, after="one").doubt == 40.0
