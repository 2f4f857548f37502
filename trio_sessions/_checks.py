"""What is given as a setting, checked at the door; errors name it."""

import inspect
import math
import os
import socket
import sys
from collections.abc import Awaitable
from pathlib import Path

from trio_sessions.types import check_session_id

__all__ = ["a_name", "awaitable", "count", "seconds", "share", "silence", "socket_folder", "switch"]


_SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes, by the system
_SOCKET_NAME = 31  # bytes of a name in the folder, with the slash


def awaitable(name: str, returned: Awaitable[object]) -> Awaitable[object]:
    """Return what a function given as ``name`` has returned, if it can be awaited."""
    if not inspect.isawaitable(returned):
        raise TypeError(
            f"{name} must be an async function, but it returned {type(returned).__name__}, "
            "which cannot be awaited"
        )
    return returned


def seconds(name: str, value: object) -> float:
    """Return a duration given as ``name``, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    try:
        duration = float(value)
    except OverflowError:
        duration = math.inf
    if not 0 < duration < math.inf:
        raise ValueError(f"{name} must be a positive, finite number of seconds, not {duration!r}")
    return duration


def silence(name: str, value: object) -> float:
    """Return a duration given as ``name``, which may be none at all."""
    return 0.0 if value == 0 and not isinstance(value, bool) else seconds(name, value)


def count(name: str, value: object) -> int:
    """Return a number of things given as ``name``, if it is one, and at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return value


def share(name: str, value: object) -> float:
    """Return a share given as ``name``, if it is one: 0.0 to 1.0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number from 0.0 to 1.0, not {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0.0 to 1.0 (1.0: off), not {value!r}")
    return float(value)


def socket_folder(name: str, value: object) -> str:
    """Return the path of a folder for Unix sockets given as ``name``, made absolute."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be the path of a folder, not {type(value).__name__}")
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError(f"{name} needs Unix sockets, which this system does not have")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"{name} must be the path of a folder, not {type(path).__name__}")
    if not path or "\0" in path:
        raise ValueError(f"{name} must be the path of a folder, not {path!r}")
    path = str(Path(path).absolute())
    longest = _SOCKET_PATH - _SOCKET_NAME
    if len(os.fsencode(path)) > longest:
        raise ValueError(
            f"{name} must be a path of at most {longest} bytes, for the path of a socket has at "
            f"most {_SOCKET_PATH}: {path!r} has {len(os.fsencode(path))}"
        )
    return path


def switch(name: str, value: object) -> bool:
    """Return a yes or no given as ``name``, if it is one: text that is true is none."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
    return value


def a_name(what: str, value: object) -> str:
    """Return a name given as ``what``, if it is one: what a session id may be, too."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    try:
        return check_session_id(value)
    except ValueError as exc:
        raise ValueError(str(exc).replace("session_id", what)) from None
