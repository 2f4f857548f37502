"""The command line: ``trio-sessions``. It needs the extra ``cli`` (click and rich)."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``trio-sessions`` and return its exit code.

    Args:
        arguments: what follows the program's name; by default `sys.argv`'s.

    Returns:
        0 on success, 1 on failure, 2 on bad usage, 128 + n after signal n.
    """
    try:
        from trio_sessions.cli._main import run
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in {"click", "rich"}:
            raise
        sys.stderr.write(
            f"trio-sessions: {missing} is not installed: pip install 'trio_sessions[cli]'\n"
        )
        return 1
    except KeyboardInterrupt:  # importing takes a moment; `run` sees to what comes later
        sys.stderr.write("trio-sessions: interrupted\n")
        return 130
    return run(arguments)
