"""A small disk, and what fills it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["ballast", "small_disk"]


@contextmanager
def small_disk(folder: Path, *, megabytes: int, like: Path) -> Iterator[None]:
    """Mount a file system of so many megabytes; skip where that is not allowed.

    Args:
        folder: where; it is made.
        megabytes: its size.
        like: a folder of whoever is to own it.
    """
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"NO DISK CAN BE FILLED: mounting needs root: {mounted.stderr.strip()}")
    try:
        owner = like.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        folder.chmod(0o700)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def ballast(folder: Path) -> Iterator[None]:
    """Fill the disk that a folder is on, for the length of the block."""
    file = folder / "ballast"
    try:
        with (
            file.open("wb", buffering=0) as heavy,
            contextlib.suppress(OSError),  # there is no room left
        ):
            while heavy.write(bytes(65536)):
                pass
        yield
    finally:
        file.unlink(missing_ok=True)
