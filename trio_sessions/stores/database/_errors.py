"""What drivers and pools raise becomes ours, at one edge, and shows nobody's secrets."""

import traceback

from sqlalchemy.exc import DBAPIError

__all__ = ["first_line", "hide_values"]


def first_line(error: BaseException | None) -> str:
    """Return the first line of what an error says: PostgreSQL's others hold values."""
    return next(iter(str(error).splitlines()), "")


def hide_values(error: BaseException) -> None:
    """Take session ids, owners, messages and passwords out of what an error shows.

    They are among the parameters, and in what PostgreSQL says beside its first line (DETAIL
    and CONTEXT). An error that is not of the server's making has none, and keeps all lines.
    The frames hold them too, and a crash reporter would send them away; and they hold a
    connection that did not come about, which would stay open as long as the error is kept.
    """
    related: list[BaseException | None] = [error]
    while related:
        each = related.pop()
        if each is None:
            continue
        traceback.clear_frames(each.__traceback__)
        if isinstance(each, DBAPIError):
            each.params = None
            if _is_of_the_server(each.orig):
                kind = type(each.orig)
                each.args = (f"({kind.__module__}.{kind.__name__}) {first_line(each.orig)}",)
        elif _is_of_the_server(each):
            each.args = (first_line(each),)
        related += [each.__cause__, each.__context__]


def _is_of_the_server(error: BaseException | None) -> bool:
    return getattr(error, "sqlstate", None) is not None
