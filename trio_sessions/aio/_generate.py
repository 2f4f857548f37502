"""How an overridden `generate_response` is called: with the values that its names ask for.

API and documents name the parameters, so a keyword-only override is called by them; one with
other names in the same places is called by position. Decided once, from the signature.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Generate", "binding"]

NAMES = ("message", "transport", "server_id", "user")

Generate = Callable[[Any, Any, "str | None", Any], Awaitable[object]]


def binding(generate_response: Callable[..., Awaitable[object]]) -> Generate:
    """Return ``generate_response``, to be called with the four values in their order.

    As many as possible are handed on by keyword; the first ones by position, if need be.

    Raises:
        TypeError: it takes them in no way.
    """
    try:
        signature = inspect.signature(generate_response)
    except (TypeError, ValueError):  # written in C: it has none to look at
        return generate_response
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    if inspect.Parameter.VAR_POSITIONAL in kinds.values() and kinds.keys().isdisjoint(NAMES):
        return generate_response  # a wrapper, as a rule of what is called by position
    for count in range(len(NAMES) + 1):
        try:
            signature.bind(*NAMES[:count], **dict.fromkeys(NAMES[count:]))
        except TypeError:
            continue
        return _bound(generate_response, count)
    raise TypeError(
        f"generate_response{signature} cannot be called with {', '.join(NAMES)}, by keyword or "
        "in this order"
    )


def _bound(generate_response: Callable[..., Awaitable[object]], count: int) -> Generate:
    names = NAMES[count:]

    def generate(*values: Any) -> Awaitable[object]:
        return generate_response(*values[:count], **dict(zip(names, values[count:], strict=True)))

    return generate
