"""Which process this is: what it has opened, told from what a fork has handed down to it.

A forked child has copies of its parent's connections, and none of its threads. It may neither
use nor close what they stand for, so it drops them (docs/decisions/0008-edges.md).
"""

import os

__all__ = ["keep_for_ever", "this_process"]


class _Process:
    """One process; the copy of it that a fork makes is replaced."""

    def __init__(self) -> None:
        self.inherited: list[object] = []
        """Kept from the garbage collector, which would close it under the parent's hands."""


_processes = [_Process()]


def this_process() -> object:
    """Return what stands for this process: compare it by ``is``; no system call."""
    return _processes[-1]


def keep_for_ever(inherited: object) -> None:
    """Drop what another process has opened without ever finalising it."""
    _processes[-1].inherited.append(inherited)


os.register_at_fork(after_in_child=lambda: _processes.append(_Process()))
