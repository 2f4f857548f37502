"""The database's clock, in SQL: every moment that is stored or compared comes from it."""

from typing import Any

from sqlalchemy import TIMESTAMP, Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement, FunctionElement

__all__ = ["age_of", "ago", "now"]

# SQLite's clock has milliseconds. A moment in the past is taken a little further back, so
# that rounding never makes a row older than it is.
_SQLITE_FORMAT = "'%Y-%m-%d %H:%M:%f'"


class now(FunctionElement[Any]):  # noqa: N801 -- reads as the SQL function that it is
    """This moment, with fractions of a second."""

    type = TIMESTAMP(timezone=True)
    inherit_cache = True


class ago(FunctionElement[Any]):  # noqa: N801
    """The moment so many seconds ago; on a transaction's clock where there is one."""

    type = TIMESTAMP(timezone=True)
    inherit_cache = True

    def __init__(self, seconds: ColumnElement[float]) -> None:
        super().__init__(seconds)


class age_of(FunctionElement[float]):  # noqa: N801
    """The seconds since a moment that was stored."""

    type = Float()
    inherit_cache = True

    def __init__(self, moment: ColumnElement[Any]) -> None:
        super().__init__(moment)


@compiles(age_of, "sqlite")
def _sqlite_age_of(element: age_of, compiler: SQLCompiler, **kw: Any) -> str:
    moment = compiler.process(element.clauses, **kw)
    return f"((julianday('now') - julianday({moment})) * 86400.0)"


@compiles(age_of, "postgresql")
def _postgresql_age_of(element: age_of, compiler: SQLCompiler, **kw: Any) -> str:
    moment = compiler.process(element.clauses, **kw)
    return f"CAST(extract(epoch FROM clock_timestamp() - {moment}) AS double precision)"


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(strftime({_SQLITE_FORMAT}, 'now'))"


@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(ago, "sqlite")
def _sqlite_ago(element: ago, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime({_SQLITE_FORMAT}, 'now', '-' || ({seconds} + 0.001) || ' seconds')"


@compiles(ago, "postgresql")
def _postgresql_ago(element: ago, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(now() - make_interval(secs => {seconds}))"
