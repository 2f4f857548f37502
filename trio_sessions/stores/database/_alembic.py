"""What Alembic is told of our tables. It needs nothing of Alembic itself."""

from typing import Any

from trio_sessions.stores.database._schema import metadata

__all__ = ["include_object"]


def include_object(
    object_: Any,
    name: str | None,
    type_: str,
    reflected: bool,  # noqa: FBT001 -- as Alembic calls it
    compare_to: Any,
    *,
    table_prefix: str = "trio_",
) -> bool:
    """Leave the tables of trio_sessions, and what belongs to them, to trio_sessions.

    For ``context.configure(include_object=...)`` in the ``env.py`` of Alembic, where the store
    creates its tables itself in a schema that your migrations keep, too: ``alembic revision
    --autogenerate`` then neither drops nor alters them. Not for migrations that create them from
    `metadata`. With another prefix: ``functools.partial(include_object, table_prefix="app_")``.

    Args:
        object_: what is compared: a table, or a part of one.
        name: its name.
        type_: ``"table"``, ``"column"``, ``"index"`` or another part of a table.
        reflected: whether it was found in the database.
        compare_to: what it is compared with.
        table_prefix: as given to `DatabaseStore`.

    Returns:
        False for our tables and their parts, True for everything else.

    Raises:
        ValueError: the prefix cannot be one.
    """
    table = name if type_ == "table" else getattr(getattr(object_, "table", None), "name", None)
    return table not in metadata(table_prefix).tables
