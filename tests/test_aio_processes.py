"""The facade in processes of its own: signals, forks, imports, and how a program ends."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from soak import longer
from warm import Program

RUNNERS = ["asyncio.run", pytest.param("uvloop.run", marks=longer)]

PRELUDE = """
import asyncio, logging, os, signal, sys, threading, warnings
from trio_sessions import StoreInUse
from trio_sessions.aio import SessionRegistry

warnings.simplefilter("error")
logging.getLogger("asyncio").setLevel(logging.ERROR)  # a slow machine is no news

class Connection:
    async def is_connected(self): return True
    async def disconnect(self): print("disconnected", flush=True)

registry = SessionRegistry("sqlite:///sessions.db")
"""
COUNT = """
import sqlite3
connection = sqlite3.connect("sessions.db")
print("rows", connection.execute("SELECT count(*) FROM trio_sessions").fetchone()[0], flush=True)
connection.close()
"""


def run(
    folder: Path, program: str, *, interrupt: bool = False, count: bool = True
) -> tuple[int, list[str], str]:
    """Run a program with warnings as errors; return its exit code, what it printed and logged."""
    source = PRELUDE + textwrap.dedent(program) + (COUNT if count else "")
    running = Program(source, folder=folder)
    printed = []
    if interrupt:
        printed.append(running.stdout.readline().strip())
        running.send_signal(signal.SIGINT)
    out, err = running.communicate(30)
    assert running.returncode is not None
    return running.returncode, printed + out.split("\n")[:-1], err


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_program_that_ends_in_order_leaves_nothing(tmp_path: Path, runner: str) -> None:
    """No warning, no thread, no row; and the same again in the same thread."""
    code, printed, err = run(
        tmp_path,
        f"""
        import uvloop
        async def main():
            async with registry:
                await registry.add_session("s", Connection())
                print((await registry.cleanup()).refreshed)
        for _ in range(2):
            {runner}(main())
        print(type(signal.getsignal(signal.SIGINT)).__name__)
        """,
    )
    assert (code, err) == (0, "")
    assert printed == ["1", "disconnected"] * 2 + ["builtin_function_or_method", "rows 0"]


@pytest.mark.parametrize("runner", RUNNERS)
def test_ctrl_c_is_asyncios(tmp_path: Path, runner: str) -> None:
    """It cancels the main task, the registry is closed on the way out, and the rows are gone."""
    code, printed, err = run(
        tmp_path,
        f"""
        import uvloop
        async def main():
            async with registry:
                await registry.add_session("s", Connection())
                print("ready", flush=True)
                await asyncio.sleep(3600)
        try:
            {runner}(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
        interrupt=True,
    )
    assert (code, err) == (0, "")
    assert printed == ["ready", "disconnected", "interrupted", "rows 0"]


def test_ctrl_c_under_a_loop_that_does_not_handle_it(tmp_path: Path) -> None:
    """`run_until_complete` lets it fly; Trio takes the signal only while it works."""
    code, printed, err = run(
        tmp_path,
        """
        loop = asyncio.new_event_loop()
        handler = signal.getsignal(signal.SIGINT)
        loop.run_until_complete(registry.initialize())
        loop.run_until_complete(registry.add_session("s", Connection()))
        async def wait():
            print("ready", flush=True)
            await asyncio.sleep(3600)
        try:
            loop.run_until_complete(wait())
        except KeyboardInterrupt:
            print("interrupted")
        for task in asyncio.all_tasks(loop):
            if task.get_name() != "trio_sessions: keeps Trio":
                task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(registry.shutdown())
        assert signal.getsignal(signal.SIGINT) is handler
        loop.close()
        """,
        interrupt=True,
    )
    assert (code, err) == (0, "")
    assert printed == ["ready", "interrupted", "disconnected", "rows 0"]


@pytest.mark.parametrize("gap", [0.0, *(pytest.param(gap, marks=longer) for gap in (0.002, 0.01))])
def test_two_presses_of_ctrl_c_while_closing_end_the_program(tmp_path: Path, gap: float) -> None:
    """As without a registry: the second is raised, but never in the middle of Trio's steps."""
    code, printed, err = run(
        tmp_path,
        f"""
        import threading, time
        class Slow(Connection):
            async def disconnect(self): await asyncio.sleep(0.05)
        def press_twice():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep({gap})
            os.kill(os.getpid(), signal.SIGINT)
            if not ended.wait(5):  # plain asyncio, too, may need one more
                os.kill(os.getpid(), signal.SIGINT)
        async def main():
            async with registry:
                await asyncio.gather(*(registry.add_session(f"s{{i}}", Slow()) for i in range(40)))
                thread.start()
                await asyncio.sleep(3600)
        ended = threading.Event()
        thread = threading.Thread(target=press_twice)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        ended.set()
        thread.join()
        """,
        count=True,
    )
    assert (code, printed) == (0, ["interrupted", "rows 0"]), err


def test_it_is_built_before_a_fork_and_opened_after_it(tmp_path: Path) -> None:
    """As with uvicorn's workers: each child has a worker_id of its own."""
    code, printed, err = run(
        tmp_path,
        """
        async def main():
            async with registry:
                await registry.add_session(f"s{os.getpid()}", Connection())
                print(registry.worker_id, flush=True)
        for _ in range(2):
            pid = os.fork()
            if not pid:
                asyncio.run(main())
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        """,
    )
    assert (code, err) == (0, "")
    assert printed[-1] == "rows 0"
    workers = {line for line in printed if line != "disconnected"} - {"rows 0"}
    assert len(workers) == 2


@pytest.mark.parametrize(
    "leave", ["os._exit(0)", pytest.param("sys.exit(0)", marks=longer), "own()"]
)
def test_a_fork_while_it_is_open_leaves_the_parents_sessions_alone(
    tmp_path: Path, leave: str
) -> None:
    """The child makes no step of the parent's run, and is told to leave its SQLite file alone."""
    code, printed, _ = run(
        tmp_path,
        f"""
        def own():
            async def open_it():
                try:
                    await registry.initialize()
                except StoreInUse as exc:
                    print("child", "spawn" in str(exc), flush=True)
            thread = threading.Thread(target=asyncio.run, args=(open_it(),))
            thread.start()
            thread.join()
            os._exit(0)

        async def main():
            async with registry:
                await registry.add_session("s", Connection())
                pid = os.fork()
                if not pid:
                    {leave}
                while not os.waitpid(pid, os.WNOHANG)[0]:
                    await asyncio.sleep(0.01)
                report = await registry.cleanup()
                print(report.refreshed, report.missing)
        asyncio.run(main())
        """,
    )
    assert code == 0
    assert printed[-3:] == ["1 ()", "disconnected", "rows 0"]
    assert ("child True" in printed) is (leave == "own()")


def test_a_program_that_just_ends_does_not_hang(tmp_path: Path) -> None:
    """Neither shut down nor closed: like a crash, the row stays until its lease runs out."""
    code, printed, _ = run(
        tmp_path,
        """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(registry.initialize())
        loop.run_until_complete(registry.add_session("s", Connection()))
        print("end", flush=True)
        """,
        count=False,
    )
    assert printed[0] == "end"
    assert code == 0


def test_importing_it_loads_no_database_and_no_other_loop() -> None:
    """What is not used is not imported."""
    heavy = ["sqlalchemy", "trio_asyncio", "uvloop", "psycopg"]
    program = (
        "import sys, trio_sessions.aio as aio; aio.SessionRegistry(); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("where", ["in the loop's thread", "in another thread"])
def test_a_forked_child_opens_the_registry_that_its_parent_has_open(
    tmp_path: Path, where: str
) -> None:
    """What it inherited is closed to it; what it opens is its own. The parent goes on."""
    forking = "await asyncio.to_thread(fork)" if "another" in where else "fork()"
    code, printed, err = run(
        tmp_path,
        f"""
        registry = SessionRegistry("memory:")  # SQLite allows no child the parent's open file
        pids = []

        async def own():
            async with registry:
                await registry.add_session("child", Connection())
                print("child", registry.worker_id != parent, flush=True)

        def fork():
            pid = os.fork()
            if pid:
                pids.append(pid)
                return
            try:
                registry.get_session_sync("s")
            except Exception as exc:
                print(type(exc).__name__, flush=True)
            thread = threading.Thread(target=asyncio.run, args=(own(),))
            thread.start()
            thread.join(20)
            os._exit(0)

        async def main():
            global parent
            async with registry:
                parent = registry.worker_id
                await registry.add_session("s", Connection())
                {forking}
                while not os.waitpid(pids[0], os.WNOHANG)[0]:
                    await asyncio.sleep(0.01)
                report = await registry.cleanup()
                print(report.refreshed, report.missing)
        asyncio.run(main())
        """,
        count=False,
    )
    assert code == 0, err
    assert printed == ["RegistryClosed", "child True", "disconnected", "1 ()", "disconnected"]
