"""Where the sockets of a host's workers are, who may be at their other end, and what is sent.

What is sent is letters, each behind its length. Nothing else, and nothing comes back.
"""

import contextlib
import hashlib
import itertools
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MOST", "Unpacking", "connected", "is_same_user", "listen", "pack", "stop_listening"]

MOST = 16 * 1024 * 1024
"""Bytes of a letter. A larger one goes by the database, one of nonsense is not waited for."""

_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_BACKLOG = 128
_LOOKED_AT = 1000  # files of which it is looked whether their workers are dead
_STARTS = 60.0  # seconds for which a socket that refuses may just be beginning to listen


def pack(text: str) -> bytes:
    """Return a letter as it is sent."""
    letter = text.encode()
    return _LENGTH.pack(len(letter)) + letter


class Unpacking:
    """The bytes that have come of one connection, until they are a letter."""

    def __init__(self) -> None:
        self._come = bytearray()

    def take(self, data: bytes) -> Iterator[str]:
        """Take in what has come, and yield the letters that it makes whole.

        Raises:
            ValueError: it is nonsense.
        """
        self._come += data
        at, head = 0, _LENGTH.size
        try:
            while len(self._come) >= at + head:
                (length,) = _LENGTH.unpack_from(self._come, at)
                if length > MOST:
                    raise ValueError(f"no letter has {length} bytes")
                if len(self._come) < at + head + length:
                    break
                letter = self._come[at + head : at + head + length]
                at += head + length
                yield letter.decode()
        finally:
            del self._come[:at]


def _path(folder: str, incarnation: str) -> Path:
    """Return where a worker listens; versions that send something else are to choose others."""
    name = hashlib.sha256(incarnation.encode(errors="replace")).hexdigest()[:24]
    return Path(folder, f"{name}.mail1")


def is_same_user(peer: socket.socket) -> bool:
    """Say whether the other end is of this user; True where the system does not tell."""
    option: int | None = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    credentials = peer.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())


def _new_socket() -> socket.socket:
    new = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    new.settimeout(0)
    return new


def connected(folder: str, incarnation: str) -> socket.socket | None:
    """Return a connection to a worker; None: it does not listen here. At once, unlike with TCP."""
    new = _new_socket()
    try:
        new.connect(str(_path(folder, incarnation)))
        if is_same_user(new):
            return new
    except OSError:
        pass
    new.close()
    return None


def listen(folder: str, incarnation: str) -> socket.socket:
    """Return a socket to which other workers connect; the files of dead ones are removed first.

    Raises:
        ValueError: the folder cannot be used.
    """
    path = _path(folder, incarnation)
    new = _new_socket()
    try:
        _prepare(Path(folder))
        new.bind(str(path))
        path.chmod(0o600)  # nobody can connect before it listens
        new.listen(_BACKLOG)
    except OSError as exc:
        new.close()
        raise ValueError(f"mail_sockets cannot be used: {exc}") from exc
    except ValueError:
        new.close()
        raise
    return new


def stop_listening(listener: socket.socket) -> None:
    """Close what `listen` has returned, and remove its file."""
    with contextlib.suppress(OSError):
        Path(listener.getsockname()).unlink()
    listener.close()


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise ValueError(
            f"mail_sockets cannot be used: there is no {folder.parent}, in which {folder.name} "
            "would be made"
        ) from None
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise ValueError(f"mail_sockets must be a folder of this user: {folder} is another's")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"mail_sockets must be a folder that nobody else may write to: {folder}")
    for path in itertools.islice(folder.glob("*.mail*"), _LOOKED_AT):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if stat.S_ISSOCK(about.st_mode) and about.st_mtime < time.time() - _STARTS:
                _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    with _new_socket() as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
