"""Programs that begin where an interpreter has already imported what they need.

For a new one the imports take most of a second of a processor, and many programs of the tests do
little else. So one interpreter makes them once, in each process of the tests, and is forked for
each program, one at a time: nothing is open in it, and no thread runs. The program ends as any
other does. In the soak each has an interpreter of its own.

Not for programs whose imports are what is looked at, and not for what coverage measures.
"""

import atexit
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from soak import SOAK
from unmeasured import unmeasured_environment

__all__ = ["Program", "prepare", "take_program"]

OPTIONS = ("-X", "dev")
START = """
import warm
warm.prepare()
exec(compile(warm.take_program(), "<string>", "exec"))
"""


# ---- in the interpreter that is forked ----


def prepare() -> None:
    """Import what programs need, and let SQLAlchemy do so too."""
    import multiprocessing.context  # noqa: F401 -- imported is what counts

    import alembic.autogenerate
    import alembic.config  # noqa: F401
    import sqlalchemy as sa

    import trio_sessions.aio
    import trio_sessions.cli._main
    import trio_sessions.stores.database
    import trio_sessions.testing  # noqa: F401

    for url in "sqlite://", "postgresql+psycopg://":
        sa.create_engine(url).dispose()
    gc.collect()
    gc.freeze()  # nobody has to look at it again, when a program ends above all


def take_program() -> str:
    """Fork for each request on the standard input; return its source, in the child only."""
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            request, descriptors, _, _ = socket.recv_fds(requests, 2**17, 2)
            if not request:  # whoever tests has ended
                os._exit(0)
            pid = os.fork()
            if not pid:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            requests.send(str(pid).encode())
            requests.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, name)
        os.close(descriptor)
    source: str
    source, folder, *sys.argv[1:] = json.loads(request)
    os.chdir(folder)
    return source


# ---- in the tests ----


@functools.cache
def _prepared() -> socket.socket:
    """Start the interpreter that is forked; it ends with this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, *OPTIONS, "-c", START],
            stdin=its.fileno(),
            stdout=subprocess.DEVNULL,
            env=unmeasured_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


class Program:
    """One that runs; its first lines may be read from ``stdout`` before it has ended."""

    def __init__(self, source: str, *arguments: str, folder: Path) -> None:
        self.returncode: int | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- `communicate` closes both
        reads, writes = os.pipe()
        self.stdout = os.fdopen(reads)
        self._process: subprocess.Popen[bytes] | None = None
        if SOAK:
            self._process = subprocess.Popen(
                [sys.executable, *OPTIONS, "-c", source, *arguments],
                cwd=folder,
                env=unmeasured_environment(),
                stdout=writes,
                stderr=self._errors,
            )
            self.pid = self._process.pid
        else:
            request = json.dumps([source, str(folder), *arguments]).encode()
            socket.send_fds(_prepared(), [request], [writes, self._errors.fileno()])
            self.pid = int(_prepared().recv(100))
        os.close(writes)

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not been seen to have ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def communicate(self, seconds: float) -> tuple[str, str]:
        """Return what it prints, and its errors, when it has ended or is killed after so long."""
        killing = threading.Timer(seconds, self.send_signal, [signal.SIGKILL])
        killing.start()
        with self.stdout, self._errors:
            printed = self.stdout.read()
            code = self._process.wait() if self._process else int(_prepared().recv(100))
            self.returncode = code
            killing.cancel()
            killing.join()
            self._errors.seek(0)
            return printed, self._errors.read()
