"""Ctrl-C where a test wants it: at the n-th point at which Python would look for a signal.

Between two bytecodes a signal is looked for when a function begins and when a call of a C
function has returned, which are the events of a profiler. It also tells of functions that are
resumed, where Python would not look; that does no harm.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import trio

import trio_sessions

__all__ = ["at_each_point", "ctrl_c_as_usual", "let_children_have_ctrl_c", "press_here", "pressing"]

OURS = str(Path(trio_sessions.__file__).parent) + os.sep
TESTING = str(Path(OURS, "testing")) + os.sep

Notice = Callable[[FrameType], None]


def press_here() -> None:
    """Press Ctrl-C: it is handled before this returns."""
    signal.raise_signal(signal.SIGINT)


def is_ours(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(OURS) and not file.startswith(TESTING)


def _is_called_by_us(frame: FrameType | None) -> bool:
    """Say whether a function of ours is on the stack of the running task."""
    ours = False
    while frame is not None and "/trio/_core/_run.py" not in frame.f_code.co_filename:
        if frame.f_code is trio_sessions.open_registry.__code__:
            return False  # before anything is opened
        ours = ours or is_ours(frame)
        frame = frame.f_back
    return ours


@contextmanager
def at_each_point(notice: Notice) -> Iterator[None]:
    """Call ``notice`` with the frame at each point where our code, or what it calls, looks."""

    def profile(frame: FrameType, event: str, _: object) -> None:
        is_a_point = event in {"call", "c_return"} and trio.lowlevel.in_trio_task()
        if is_a_point and _is_called_by_us(frame):
            notice(frame)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextmanager
def pressing(number: int) -> Iterator[list[str]]:
    """Press once, at the n-th point; the list that it gives says where, when it has."""
    where: list[str] = []
    left = number

    def notice(frame: FrameType) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            sys.setprofile(None)
            code = frame.f_code
            where.append(f"{code.co_qualname}, {Path(code.co_filename).name}:{frame.f_lineno}")
            press_here()

    with at_each_point(notice):
        yield where


@contextmanager
def ctrl_c_as_usual() -> Iterator[None]:
    """Let SIGINT be Python's, also where whoever started the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def let_children_have_ctrl_c() -> None:
    """Ignore SIGINT only here, if whoever has started this has it ignored.

    What is ignored is so in children too, under ``nohup`` or in the background; a handler is not.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
