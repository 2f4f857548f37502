"""Where temporary files of the tests are: in memory, where there is room.

To create a file on a disk takes a millisecond of a processor, and the data of each server of
PostgreSQL are hundreds of files. In the soak they are on the disk.
"""

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["use_memory"]

_MEMORY = Path("/dev/shm")
_ENOUGH = 4 * 2**30  # bytes; all processes of the tests together take a quarter of that


def use_memory() -> None:
    """Have temporary files in memory from now on, unless ``TMPDIR`` says where they are to be."""
    if (
        "TMPDIR" not in os.environ
        and os.access(_MEMORY, os.W_OK | os.X_OK)
        and shutil.disk_usage(_MEMORY).free > _ENOUGH
    ):
        os.environ["TMPDIR"] = str(_MEMORY)  # for programs that tests start, too
        tempfile.tempdir = None  # what it was found to be
