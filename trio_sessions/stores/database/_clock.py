"""The database's clock, in SQL: every moment that is stored or compared comes from it.

What it is called stands in the description of each database (`Clock`).
"""

from typing import Any

from sqlalchemy import TIMESTAMP, Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement, FunctionElement

from trio_sessions.stores.database._database import find

__all__ = ["age_of", "ago", "now"]


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


@compiles(now)
def _now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return find(compiler.dialect.name).clock.now


@compiles(ago)
def _ago(element: ago, compiler: SQLCompiler, **kw: Any) -> str:
    return find(compiler.dialect.name).clock.ago(compiler.process(element.clauses, **kw))


@compiles(age_of)
def _age_of(element: age_of, compiler: SQLCompiler, **kw: Any) -> str:
    return find(compiler.dialect.name).clock.age_of(compiler.process(element.clauses, **kw))
