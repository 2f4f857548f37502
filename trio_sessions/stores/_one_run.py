"""A store is open in one Trio run of one process at a time.

Locks, events and tasks belong to a run, threads and connections to a process. What a store
keeps of that kind is one object, made anew for each run, and this file says whose it is::

    nobody ── join ──▶ this run ── join ──▶ this run, shared by its workers
       ▲                   │
       └── the last leave ─┘

    another run, which goes on     join is refused
    another run, which has ended   made anew, and told of the one that nobody has closed
    another process (a fork)       made anew; theirs is kept, never closed: it is in use there

See docs/decisions/0008-edges.md.
"""

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import trio

from trio_sessions._process import keep_for_ever, this_process
from trio_sessions.abc import Worker
from trio_sessions.errors import StoreInUse, StoreUnavailable

__all__ = ["OneRun"]

S = TypeVar("S")


@dataclass(slots=True, kw_only=True)
class _Claim(Generic[S]):
    state: S
    token: trio.lowlevel.TrioToken
    process: object = field(default_factory=this_process)
    incarnations: set[str] = field(default_factory=set)

    def is_inherited(self) -> bool:
        return self.process is not this_process()

    def is_in_use(self) -> bool:
        """Say whether the run goes on that has made this claim."""
        try:
            self.token.run_sync_soon(lambda: None)
        except (trio.RunFinishedError, OSError):  # OSError: it has crashed
            return False
        return True


class _Stores:
    """The stores of this process, and the lock under which they are claimed."""

    def __init__(self) -> None:
        self.all: weakref.WeakSet[OneRun[Any]] = weakref.WeakSet()
        self.lock = threading.Lock()
        """Threads claim stores one at a time; nobody who has it waits for anything."""

    def renew(self) -> None:
        """Replace the lock in a forked child: a thread of the parent may have had it."""
        self.lock = threading.Lock()
        for store in self.all:
            keep_for_ever(store.claim)


class OneRun(Generic[S]):
    """What a store keeps for the run that has it open.

    Args:
        make: makes it when the first worker of a run opens the store; is given the one of a
            run that has ended without closing it.
        name: the store, in messages.
    """

    def __init__(self, make: Callable[[S | None], S], name: str) -> None:
        self._make = make
        self._name = name
        self.claim: _Claim[S] | None = None
        _stores.all.add(self)

    @property
    def state(self) -> S:
        """What is kept for the run that has the store open.

        Raises:
            StoreUnavailable: nobody has it open, or the process that had it was forked.
        """
        claim = self.claim
        if claim is None:
            raise StoreUnavailable(f"{self._name} is closed")
        if claim.is_inherited():
            raise StoreUnavailable(f"{self._name} was opened before a fork: open it anew")
        return claim.state

    @property
    def is_open(self) -> bool:
        """Whether somebody has it open in this process."""
        return self.claim is not None and not self.claim.is_inherited()

    def join(self, worker: Worker) -> S:
        """Open the store for a worker of the current run, and return what the run keeps.

        Raises:
            StoreInUse: another run has it open, and goes on.
        """
        token = trio.lowlevel.current_trio_token()
        with _stores.lock:
            claim = self.claim
            if claim is not None and claim.is_inherited():
                claim = None
            if claim is None or claim.token is not token:
                if claim is not None and claim.is_in_use():
                    raise StoreInUse(
                        f"{self._name} is open in another Trio run (or event loop) of this "
                        "process: make a store for each of them, or close it there first"
                    )
                state = self._make(None if claim is None else claim.state)
                claim = self.claim = _Claim(state=state, token=token)
            claim.incarnations.add(worker.incarnation)
            return claim.state

    def leave(self, worker: Worker) -> S | None:
        """Close the store for a worker; return what is to be closed if it was the last one."""
        with _stores.lock:
            claim = self.claim
            if claim is None or worker.incarnation not in claim.incarnations:
                return None
            if claim.is_inherited():
                return None
            claim.incarnations.remove(worker.incarnation)
            if claim.incarnations:
                return None
            self.claim = None
            return claim.state


_stores = _Stores()
os.register_at_fork(after_in_child=_stores.renew)
