"""Which thread this is: an identity that is never used again, as a thread's number may be."""

import threading

__all__ = ["this_thread"]


class _Identity(threading.local):
    def __init__(self) -> None:
        self.value = object()


_identity = _Identity()


def this_thread() -> object:
    """Return an object that stands for the running thread; compare it by ``is``."""
    return _identity.value
