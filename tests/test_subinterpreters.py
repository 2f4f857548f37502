"""Another interpreter of the process: what cannot be loaded there says so, and harms nobody."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, importlib.util, sys, trio
from trio_sessions import open_registry

names = ("_interpreters", "_xxsubinterpreters")  # the first from Python 3.13 on
modules = [name for name in names if importlib.util.find_spec(name)]
if not modules:
    sys.exit(3)
interpreters = importlib.import_module(modules[0])

class Transport:
    async def is_connected(self): return True
    async def disconnect(self): pass

def said_by_another_interpreter():
    another = interpreters.create()
    code = "import trio_sessions; raise SystemError('it was imported')"
    if hasattr(interpreters, "exec"):
        failure = interpreters.exec(another, code)
        said = failure.formatted
    else:
        try:
            interpreters.run_string(another, code)
        except interpreters.RunFailedError as exc:
            said = str(exc)
    interpreters.destroy(another)
    return said

async def main():
    async with open_registry("memory:") as registry:
        await registry.add_session("s", Transport())
        print(said_by_another_interpreter())
        report = await registry.cleanup()
        print(report.checked, await registry.session_exists("s"))

trio.run(main)
"""


def test_another_interpreter_refuses_the_import_and_harms_nobody() -> None:
    """What our packages are written in (orjson's Rust, Trio's ctypes) is for one interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 3:
        pytest.skip("this Python has no module for other interpreters")
    assert done.returncode == 0, done.stderr
    said, works_on = done.stdout.rsplit("\n", 2)[:2]
    assert "ImportError" in said or "RuntimeError" in said
    assert "subinterpreters" in said
    assert works_on == "1 True"
