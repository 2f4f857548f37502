"""Where asyncio's debug mode says that something was made: a few frames, read when asked for.

In that mode asyncio notes a stack for each callback, future and task. To walk it and to look for
each of its files on the disk takes a quarter of the time of a test on asyncio, and it is of use in
a warning only: who wanted it is enough.
"""

import sys
import traceback
from traceback import FrameSummary, StackSummary, walk_stack
from types import FrameType

import pytest

__all__ = ["innermost", "note_innermost_frames"]

_DEPTH = 4  # three are asyncio's own, of a timer; it removes them


def note_innermost_frames() -> None:
    """Have asyncio note no more than that in this process, from now on."""
    patch = pytest.MonkeyPatch()
    patch.setattr("asyncio.format_helpers.extract_stack", innermost)
    # Its futures and tasks are written in C, and have got hold of the function itself.
    patch.setattr(traceback.extract_stack, "__code__", _extract_stack.__code__)


def innermost(frame: FrameType | None) -> StackSummary:
    """Return a frame and those that called it, as far as they are of use, itself the last."""
    frames: list[FrameSummary] = []
    while frame is not None and len(frames) < _DEPTH:
        code = frame.f_code
        frames.insert(
            0, FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False)
        )
        frame = frame.f_back
    return StackSummary.from_list(frames)


# Becomes the code of `traceback.extract_stack`, and knows the names of that module only. Nobody but
# asyncio calls that without a frame and without a limit: what prints a stack gives its frame.
def _extract_stack(f: FrameType | None = None, limit: int | None = None) -> StackSummary:
    if f is None and limit is None:
        from stacks import innermost

        return innermost(sys._getframe(1))
    stack = StackSummary.extract(walk_stack(f or sys._getframe(1)), limit=limit)
    stack.reverse()
    return stack
