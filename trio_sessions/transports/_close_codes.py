"""By which close code a WebSocket's client is told why its session has ended.

Sources: RFC 6455, section 7.4, and IANA's "WebSocket Close Code Number Registry", which has added
1012 ("Service Restart") to it. Where neither has a word for it, the code is one of those that are
"reserved for private use", 4000 to 4999: 4000 and the status that HTTP has for the like.
"""

from typing import Final

from trio_sessions.types import RemovalReason

__all__ = ["close_code"]

_NORMAL: Final = 1000
_GOING_AWAY: Final = 1001
_SERVICE_RESTART: Final = 1012

_CODES: Final = {
    RemovalReason.DISCONNECTED: _NORMAL,
    RemovalReason.REMOVED: _NORMAL,
    RemovalReason.CLOSED: _GOING_AWAY,
    RemovalReason.DRAINED: _SERVICE_RESTART,
    RemovalReason.AGED: 4401,  # Unauthorized: log in again
    RemovalReason.REVOKED: 4403,  # Forbidden
    RemovalReason.MISSING: 4404,  # Not Found
    RemovalReason.IDLE: 4408,  # Request Timeout
    RemovalReason.TAKEN_OVER: 4409,  # Conflict
}


def close_code(reason: RemovalReason | None) -> int:
    """Return the close code of a WebSocket whose session has ended for this reason.

    ============  ====  ==================================================================
    Reason        Code  What a client may do
    ============  ====  ==================================================================
    None          1000  nothing: the connection was closed, and no registry has said why
    disconnected  1000  nothing: it has gone itself
    removed       1000  nothing: the session was ended as planned
    closed        1001  connect again after a pause; its session is gone
    drained       1012  connect again: another worker is there; its session is gone
    aged          4401  log in again
    revoked       4403  nothing: it would be refused
    missing       4404  begin a new session
    idle          4408  connect again when there is something to say
    taken_over    4409  nothing: a newer connection holds the session
    ============  ====  ==================================================================

    1000 and 1001 are RFC 6455's, 1012 is registered at IANA, and the others are of the range that
    is left to applications. The closing frame's text is the reason's word.

    Args:
        reason: why; None: nobody has said.
    """
    return _NORMAL if reason is None else _CODES[reason]
