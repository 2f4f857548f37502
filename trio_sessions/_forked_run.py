"""A forked child that goes on with its parent's Trio run: it must not take its events away.

`os.fork` in a Trio task copies the run. The child's copy ends sooner or later, by ``sys.exit``
at the latest, and on its way it makes steps. But the epoll object, and the sockets that wake
the run, are shared: the child takes wakeups that are meant for its parent, and what it
deregisters is deregistered there too. Then no thread of the parent's ever reports back to it,
and no pass ends again. This happens without a registry as well; with one it costs sessions.

So the child gets an epoll and sockets of its own, under the old file descriptors, before it
makes its first step. What the registry does in the background ends there, and so does each wait
for a thread, which only the parent has. Trio has no public name for them. Where they are not to
be found, all is as it was; tests/test_forks.py notices.
"""

import contextlib
import os
import select
import socket
import threading
import weakref
from typing import Any, Protocol

import trio

__all__ = ["abandon_on_fork", "part_on_fork"]


class _Abandons(Protocol):
    def abandon(self) -> None: ...


_runs: "weakref.WeakKeyDictionary[trio.lowlevel.TrioToken, weakref.WeakSet[_Abandons]]" = (
    weakref.WeakKeyDictionary()
)


def part_on_fork() -> None:
    """Part every forked child from the current Trio run, from now on; see the head of this file."""
    _runs.setdefault(trio.lowlevel.current_trio_token(), weakref.WeakSet())


def abandon_on_fork(ongoing: _Abandons) -> None:
    """Call ``ongoing.abandon()`` in each forked child of the current run, from now on."""
    part_on_fork()
    _runs[trio.lowlevel.current_trio_token()].add(ongoing)


def _part() -> None:
    """Part the run of a forked child from its parent's; in the thread that forked."""
    if not trio.lowlevel.in_trio_run():
        return
    ongoing = _runs.get(trio.lowlevel.current_trio_token())
    if ongoing is None:
        return
    with contextlib.suppress(ImportError, AttributeError):
        from trio._core._run import GLOBAL_RUN_CONTEXT

        runner: Any = GLOBAL_RUN_CONTEXT.runner
        if not runner.is_guest:  # trio_sessions.aio lets a guest make no step at all
            runner.entry_queue.lock = threading.RLock()
            _renew_sockets(runner.entry_queue.wakeup)
            _renew_sockets(runner.io_manager._force_wakeup)  # noqa: SLF001
            _renew_epoll(runner.io_manager)
    for each in list(ongoing):
        each.abandon()


def _renew_sockets(wakeup: Any) -> None:
    olds = wakeup.wakeup_sock, wakeup.write_sock
    for old, new in zip(olds, socket.socketpair(), strict=True):
        with new:
            new.settimeout(0)
            os.dup2(new.fileno(), old.fileno(), inheritable=False)
    wakeup.wakeup_thread_and_signal_safe()  # for what was in the old ones


def _renew_epoll(io_manager: Any) -> None:
    with select.epoll() as new:
        os.dup2(new.fileno(), io_manager._epoll.fileno(), inheritable=False)  # noqa: SLF001
    io_manager._epoll.register(io_manager._force_wakeup_fd, select.EPOLLIN)  # noqa: SLF001
    for descriptor, waiters in list(io_manager._registered.items()):  # noqa: SLF001
        waiters.current_flags = 0
        io_manager._update_registrations(descriptor)  # noqa: SLF001


os.register_at_fork(after_in_child=_part)
