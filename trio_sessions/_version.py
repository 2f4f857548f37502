"""Which version this is, asked for when somebody wants to know: that reads files."""

from functools import cache
from pathlib import Path

__all__ = ["version"]

_SOURCES = Path(__file__).parents[1] / "pyproject.toml"


@cache
def version() -> str:
    """Return the version of the code that runs; "" if nothing says it.

    A checkout says so itself: what is installed may be another version, or be none at all.
    """
    return _of_a_checkout(_SOURCES) or _installed()


def _of_a_checkout(sources: Path) -> str:
    import tomllib

    try:
        project = tomllib.loads(sources.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):  # it is installed, and what lies there is not ours
        return ""
    ours = isinstance(project, dict) and project.get("name") == "trio_sessions"
    return str(project.get("version", "")) if ours else ""


def _installed() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("trio_sessions")
    except PackageNotFoundError:  # somebody has copied the folder
        return ""
