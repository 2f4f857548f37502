"""What tools of both kinds of servers do."""

import os
from pathlib import Path

__all__ = ["note"]


def note(name: str) -> None:
    """Write down that a tool runs."""
    with Path(os.environ["CHECK_RAN"]).open("a") as file:
        file.write(f"{name}\n")
