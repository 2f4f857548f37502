"""The command line, as a stranger runs it: real processes, sockets and databases."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from warm import Program

import trio_sessions
from trio_sessions import CleanupReport, fingerprint
from trio_sessions._version import _of_a_checkout
from trio_sessions.cli import main
from trio_sessions.cli._demo import run_demo
from trio_sessions.cli._main import commands, conclude, guarded, until_signalled
from trio_sessions.cli._show import Screen
from trio_sessions.cli._stage import Stage
from trio_sessions.cli._verdict import Deeds, Finding, Outcome, Verdict, compare, expect

ROOT = Path(__file__).parents[1]
MODULE = ("-m", "trio_sessions.cli")


def command(
    *arguments: str, start: tuple[str, ...] = MODULE, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", *start, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=ROOT,
        env=clean_environment(**environment),
    )


def quick_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process that has no imports left to make; what they cost shows nothing here."""
    return ended(started(*arguments, **environment))


def started(*arguments: str, **environment: str) -> Program:
    changes = f"os.environ.clear(); os.environ.update({clean_environment(**environment)!r})"
    source = f"import os, sys; {changes}; from trio_sessions.cli import main; sys.exit(main())"
    return Program(source, *arguments, folder=ROOT)


def ended(program: Program) -> subprocess.CompletedProcess[str]:
    out, err = program.communicate(50)
    assert program.returncode is not None
    return subprocess.CompletedProcess([], program.returncode, out, err)


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what would change the demo's output or database."""
    unwanted = {"TRIO_SESSIONS_DATABASE_URL", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"}
    return {name: value for name, value in os.environ.items() if name not in unwanted} | more


def complaint(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """Return the only line on stderr."""
    assert done.returncode == exit_code, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("trio-sessions: "), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def table_names(url: sa.URL) -> list[str]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    names = sa.inspect(engine).get_table_names()
    engine.dispose()
    return names


def assert_success(done: subprocess.CompletedProcess[str], *, gone: int) -> None:
    assert (done.returncode, done.stderr) == (0, ""), done
    assert f"As expected: gone are {gone} sessions" in done.stdout
    for phase in ("steady", "vanish", "hangs", "deleted", "away", "back", "takeover"):
        assert re.search(rf"^ok +\d [a-z ]*{phase}", done.stdout, re.MULTILINE), phase
    for field in ("checked", "refreshed", "check_failures", "refresh_failures", "duration"):
        assert field in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout), "control characters"
    assert not re.search(r"[\w-]{22}", done.stdout), "a session id"


# ---- the demo, whole ----


def test_the_demo_succeeds_by_itself(tmp_path: Path) -> None:
    """It needs no arguments but takes a temporary folder, which it leaves empty."""
    done = command("demo", "--sessions", "7", "--workers", "3", TMPDIR=str(tmp_path))
    assert_success(done, gone=4)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_succeeds_on_postgresql(empty_schema: sa.URL) -> None:
    """It cuts real connections to it, and leaves no table behind."""
    url = empty_schema.render_as_string(hide_password=False)
    assert_success(quick_command("demo", "--sessions", "20", "--database-url", url), gone=8)
    assert table_names(empty_schema) == []


def test_the_demo_leaves_the_tables_of_others_alone(sqlite_url: sa.URL) -> None:
    """The database comes from the environment; output is ASCII where nothing else is possible."""
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE trio_sessions (mine INTEGER)")
        connection.exec_driver_sql("INSERT INTO trio_sessions VALUES (7)")
    url = sqlite_url.render_as_string()
    done = command(
        "demo", "--sessions", "1", TRIO_SESSIONS_DATABASE_URL=url, PYTHONIOENCODING="ascii"
    )
    assert_success(done, gone=1)
    assert table_names(sqlite_url) == ["trio_sessions"]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT mine FROM trio_sessions").scalar_one() == 7
    engine.dispose()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_an_interrupted_demo_cleans_up(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Ctrl-C in the middle ends it with 130, one line, and nothing left behind."""
    more: list[str] = []
    if database == "postgresql":
        schema = request.getfixturevalue("empty_schema")
        more = ["--database-url", schema.render_as_string(hide_password=False)]
    program = started("demo", "--sessions", "10", *more, TMPDIR=str(tmp_path))
    while not (line := program.stdout.readline()).startswith("ok    4"):
        assert line, "it ended before it was interrupted"
    program.send_signal(signal.SIGINT)
    done = ended(program)
    assert (done.returncode, done.stderr) == (130, "trio-sessions: interrupted\n")
    assert list(tmp_path.iterdir()) == []
    if database == "postgresql":
        assert table_names(schema) == []


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ([], 2, "Missing command"),
        (["dance"], 2, "No such command 'dance'"),
        (["demo", "--loud"], 2, "--loud"),
        (["demo", "now"], 2, "now"),
        (["demo", "--sessions", "0"], 2, "--sessions"),
        (["demo", "--sessions", "many"], 2, "--sessions"),
        (["demo", "--workers", "1"], 2, "--workers"),
        (["demo", "--database-url", "here"], 2, "--database-url"),
        (["demo", "--database-url", ""], 2, "--database-url"),
        (["demo", "--database-url", "memory:"], 2, "share a database"),
        (["demo", "--database-url", "sqlite://"], 2, "in-memory"),
        (["demo", "--database-url", "mysql://u:secret@h/d"], 2, "mysql"),
        (["demo", "--database-url", "postgresql+asyncpg://u:secret@h/d"], 2, "asyncpg"),
        (["demo", "--database-url", "sqlite:////no/such/folder/s.db"], 1, "/no/such/folder"),
        (["demo", "--database-url", "postgresql://u:secret@127.0.0.1:1/d"], 1, "u:***@"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], exit_code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad usage is 2, a failure 1; the line says what is wrong, and no password."""
    assert main(arguments) == exit_code
    line = capsys.readouterr().err
    assert re.fullmatch(r"trio-sessions: .*\n", line)
    assert words in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["demo", "--sessions", "0"], 2),
        (["demo", "--database-url", "postgresql://u:secret@127.0.0.1:1/d"], 1),
    ],
)
def test_a_mistake_leaves_the_process_with_one_line(arguments: list[str], exit_code: int) -> None:
    """The exit code reaches the shell, and nothing else is on stderr."""
    assert "secret" not in complaint(quick_command(*arguments), exit_code)


def test_a_file_that_is_no_database_is_told_in_one_line(tmp_path: Path) -> None:
    """And it is left as it is."""
    (tmp_path / "letter.txt").write_text("Dear database, " * 100)
    line = complaint(quick_command("demo", "--database-url", f"sqlite:///{tmp_path}/letter.txt"), 1)
    assert "not a database" in line
    assert (tmp_path / "letter.txt").read_text() == "Dear database, " * 100


def test_tables_that_are_not_ours_are_told_in_one_line(
    sqlite_url: sa.URL, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the column; the table is neither altered nor dropped."""
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE mine_sessions (session_id VARCHAR PRIMARY KEY)")
    engine.dispose()
    story = partial(
        run_demo, sqlite_url, sessions=2, workers=2, screen=Screen(), table_prefix="mine_"
    )
    assert guarded(lambda: trio.run(story)) == 1
    assert re.fullmatch(r"trio-sessions: .*'worker_id'.*\n", capsys.readouterr().err)
    assert table_names(sqlite_url) == ["mine_sessions"]


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_it_says_what_to_install(missing: str) -> None:
    """The module itself can be imported; only what needs the extra fails."""
    script = (
        f"import sys; sys.modules[{missing!r}] = None; import trio_sessions.cli as cli; "
        "sys.exit(cli.main(['demo']))"
    )
    line = complaint(command(start=("-c", script)), 1)
    assert missing in line
    assert "pip install 'trio_sessions[cli]'" in line


def test_without_the_driver_it_says_what_to_install() -> None:
    """The line names the extra of PostgreSQL."""
    script = (
        "import sys; sys.modules['psycopg'] = None; import trio_sessions.cli as cli; "
        "sys.exit(cli.main(['demo', '--database-url', 'postgresql://localhost/d']))"
    )
    line = complaint(command(start=("-c", script)), 1)
    assert "pip install 'trio_sessions[postgresql]'" in line


def test_too_few_open_files_are_told_in_one_line() -> None:
    """The line says how many are needed, and how to get them."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512)); "
        "import trio_sessions.cli as cli; sys.exit(cli.main(['demo', '--sessions', '500']))"
    )
    line = complaint(ended(Program(script, folder=ROOT)), 1)
    assert "1200" in line
    assert "ulimit -n" in line


def test_a_demo_that_does_not_end_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """The limit is told in one line."""
    assert guarded(lambda: trio.run(until_signalled, trio.sleep_forever, 0.01)) == 1
    assert re.fullmatch(r"trio-sessions: .*within 0.01 seconds.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_is_there(arguments: list[str]) -> None:
    """On stdout, with exit code 0, and naming what can be given."""
    done = quick_command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    wanted = ["demo"]
    if len(arguments) > 1:
        wanted = ["--sessions", "--workers", "--database-url", "TRIO_SESSIONS_DATABASE_URL"]
    assert all(word in done.stdout for word in wanted)


def test_each_command_shows_examples() -> None:
    """A line that can be copied says more than a list of options."""
    for name, each in {"": commands, **commands.commands}.items():
        assert "trio-sessions " in (each.help or "").partition("Example")[2], f"{name} has none"
        assert name in (each.help or "")


def test_the_version_is_that_of_the_code(tmp_path: Path) -> None:
    """In a checkout whatever is installed, and where nothing is; it is not asked for at import."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert trio_sessions.__version__ == wanted
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"trio-sessions {wanted}\n", "")
    assert _of_a_checkout(tmp_path / "pyproject.toml") == ""
    for text in ("no toml", "[tool]", "project = 1", '[project]\nname = "other"\nversion = "9"'):
        (tmp_path / "pyproject.toml").write_text(text)
        assert _of_a_checkout(tmp_path / "pyproject.toml") == ""
    looked = "import sys, trio_sessions; sys.exit('trio_sessions._version' in vars(trio_sessions))"
    assert command(start=("-c", looked)).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute '__verson__'"):
        getattr(trio_sessions, "__verson__")  # noqa: B009 -- it is not there


def test_the_installed_version_is_told_where_there_are_no_sources(tmp_path: Path) -> None:
    """By a copy of the package without its pyproject.toml, beside what pip notes of it."""
    shutil.copytree(ROOT / "trio_sessions", tmp_path / "trio_sessions")
    told = tmp_path / "trio_sessions-7.8.9.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: trio_sessions\nVersion: 7.8.9\n")
    program = "import trio_sessions; print(trio_sessions.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(tmp_path)),
    )
    assert done.stdout == "7.8.9\n"


def test_a_shell_can_complete_commands() -> None:
    """As docs/howto/watching.md says."""
    done = quick_command(
        _TRIO_SESSIONS_COMPLETE="bash_complete", COMP_WORDS="trio-sessions do", COMP_CWORD="1"
    )
    assert done.stdout == "plain,doctor\n"


# ---- the verdict ----

HELD = frozenset({"a", "b", "c", "d"})


def one(*names: str) -> frozenset[str]:
    return frozenset(names)


@pytest.mark.parametrize(
    ("deeds", "disconnected", "missing", "kept_unknown", "restored"),
    [
        (Deeds(), one(), one(), one(), one()),
        (Deeds(vanished=one("a")), one("a"), one(), one(), one()),
        (Deeds(hung=one("a")), one(), one(), one("a"), one()),
        (Deeds(deleted=one("a"), taken=one("b")), one(), one("a", "b"), one(), one()),
        (Deeds(vanished=one("a"), deleted=one("a")), one("a"), one(), one(), one()),
        (Deeds(deleted=one("a"), unwritten=one("a")), one(), one(), one(), one("a")),
        (Deeds(away=True, vanished=one("a")), one("a"), one(), one("b", "c", "d"), one()),
        (Deeds(away=True, deleted=one("a"), unwritten=one("b")), one(), one(), HELD, one()),
    ],
)
def test_what_a_pass_has_to_do_follows_from_what_was_done(
    deeds: Deeds,
    disconnected: frozenset[str],
    missing: frozenset[str],
    kept_unknown: frozenset[str],
    restored: frozenset[str],
) -> None:
    """Removed is the disconnected and the confirmed missing; the unknown is kept."""
    outcome = expect(HELD, HELD, deeds)
    assert outcome.disconnected == disconnected
    assert outcome.missing == missing
    assert outcome.unanswered | outcome.unrefreshed == kept_unknown
    assert outcome.restored == restored
    assert outcome.held == HELD - disconnected - missing
    assert outcome.rows == (HELD if deeds.away else outcome.held)


def one_too_many(outcome: Outcome) -> Outcome:
    return replace(outcome, missing=outcome.missing | {"b"})


def one_too_few(outcome: Outcome) -> Outcome:
    return replace(outcome, disconnected=outcome.disconnected - {"a"})


@pytest.mark.parametrize(
    ("spoil", "difference"),
    [
        (one_too_many, f"removed as missing: too many: {fingerprint('b')}"),
        (one_too_few, f"removed as disconnected: too few: {fingerprint('a')}"),
        (
            lambda outcome: replace(outcome, held=outcome.held - {"c"}),
            f"held by the registry: too few: {fingerprint('c')}",
        ),
        (
            lambda outcome: replace(outcome, cut=one("b", "c")),
            "clients whose connection was closed: too many: "
            + ", ".join(sorted([fingerprint("b"), fingerprint("c")])),
        ),
        (lambda outcome: replace(outcome, checked=3), "transports asked: 3 instead of 4"),
    ],
)
def test_every_difference_is_named(spoil: Callable[[Outcome], Outcome], difference: str) -> None:
    """By the session's fingerprint, and as the only one."""
    expected = expect(HELD, HELD, Deeds(vanished=one("a")))
    assert compare(expected, expected) == ()
    assert compare(expected, spoil(expected)) == (difference,)


def verdict_of(happened: Outcome, *, left_behind: frozenset[str] = frozenset()) -> Verdict:
    report = CleanupReport(
        checked=4,
        refreshed=3,
        disconnected=("a",),
        missing=(),
        restored=(),
        expired=0,
        duration=0.1,
    )
    expected = expect(HELD, HELD, Deeds(vanished=one("a")))
    finding = Finding(
        phase="2 vanish", worker="w", report=report, expected=expected, happened=happened
    )
    return Verdict(findings=(finding,), left_behind=left_behind)


def test_the_exit_code_is_1_if_one_session_too_many_or_too_few_is_gone() -> None:
    """And the output names the phase, the worker and the fingerprint, but no id."""
    expected = expect(HELD, HELD, Deeds(vanished=one("a")))
    assert conclude(Screen(StringIO()), verdict_of(expected)) == 0
    for spoil, name in ((one_too_many, "b"), (one_too_few, "a")):
        output = StringIO()
        assert conclude(Screen(output), verdict_of(spoil(expected))) == 1
        assert re.search(rf"WRONG 2 vanish, w: .*{fingerprint(name)}", output.getvalue())
        assert "NOT as expected" in output.getvalue()


def test_a_narrow_terminal_shows_every_figure_of_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names are folded; nothing is cut off, and whether it is right stands at the end."""
    monkeypatch.setenv("COLUMNS", "60")
    output = StringIO()
    assert conclude(Screen(output), verdict_of(expect(HELD, HELD, Deeds(vanished=one("a"))))) == 0
    done = verdict_of(expect(HELD, HELD, Deeds(vanished=one("a"))))
    long = replace(done.findings[0], phase="2 clients vanish", worker="worker-1")
    conclude(Screen(output), replace(done, findings=(long,)))
    assert "…" not in output.getvalue()
    assert output.getvalue().count("ok\n") == 2


def test_a_row_left_behind_or_nothing_seen_at_all_is_no_success() -> None:
    """A demo that saw no pass has shown nothing."""
    expected = expect(HELD, HELD, Deeds(vanished=one("a")))
    left = verdict_of(expected, left_behind=one("d"))
    assert left.differences == (f"after closing: rows left behind: {fingerprint('d')}",)
    assert conclude(Screen(StringIO()), left) == 1
    assert conclude(Screen(StringIO()), Verdict(findings=(), left_behind=one())) == 1


async def test_a_session_that_disappears_behind_the_demos_back_is_found_out(
    sqlite_url: sa.URL,
) -> None:
    """One row too many is really deleted: the verdict names that session, once, and fails."""
    victims: list[str] = []

    async def delete_one_more(phase: str, stage: Stage) -> None:
        if phase == "4 rows deleted":
            # The one that the story would take next: it has to go on without it.
            worker, victim = stage._untouched[0]
            assert worker is stage.gateways[1]
            victims.append(victim)
            await stage.database.delete(victims)

    output = StringIO()
    screen = Screen(output)
    with trio.fail_after(40):
        verdict = await run_demo(
            sqlite_url, sessions=10, workers=2, screen=screen, meddle=delete_one_more
        )
    assert conclude(screen, verdict) == 1
    phase = "4 rows deleted, worker-2: "
    assert all(difference.startswith(phase) for difference in verdict.differences)
    named = f"{phase}removed as missing: too many: {fingerprint(victims[0])}"
    assert named in verdict.differences
    assert f"WRONG {phase}removed as missing" in output.getvalue()
    assert victims[0] not in output.getvalue()
