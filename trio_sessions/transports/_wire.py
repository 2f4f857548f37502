"""Messages of peers, as JSON; what is sent to them is encoded by `trio_sessions._json`."""

import json

__all__ = ["parse"]


def parse(received: bytes | str, *, what: str) -> object:
    """Return the JSON value that a peer has sent.

    Args:
        received: its text; bytes are UTF-8.
        what: names it in errors.

    Raises:
        ValueError: it is no JSON (NaN and infinity neither), or no UTF-8, or nested too deeply.
    """

    def refuse(constant: str) -> object:
        raise ValueError(f"{what} is not JSON: {constant}")

    text = received if isinstance(received, str) else received.decode()
    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply for JSON") from None
