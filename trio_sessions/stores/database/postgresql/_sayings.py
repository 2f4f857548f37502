"""What is said of sessions: owners, capabilities and data."""

from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.stores.database.postgresql._doubt import DOUBT
from trio_sessions.stores.database.postgresql._kinds import Kind, Names, asked, own
from trio_sessions.types import Holder
from trio_sessions.writes import ClaimOwner, Differs, Keep, SetCapabilities, SetData, SetOwner

__all__ = ["SAYINGS"]


_DIFFERS = "differs"
_SAYING = """
                ended bigint, owns boolean, claims boolean, owner text, capabilities text,
                elicitation boolean, brings boolean, data text, compares boolean, only_if text"""


def _sayings(names: Names) -> str:
    """Return the CTEs that write owners, capabilities and data: one of the three a write.

    An owner that stays the same is not written.

    Where the database may have forgotten something, nobody wins a session that says that it has
    no owner; its own holder knows.
    """
    return f"""{asked(names, "sayings", _SAYING)}, saying_locks AS MATERIALIZED (
            SELECT s.session_id, s.worker_id, s.incarnation, s.generation, s.owner, s.data
            FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT id FROM sayings WHERE there))
            ORDER BY s.session_id FOR NO KEY UPDATE SKIP LOCKED
        ), saying_found AS MATERIALIZED (
            SELECT x.n, x.id, x.owns, x.capabilities, x.elicitation, x.brings, x.data,
                x.compares AND x.only_if IS DISTINCT FROM l.data AS differs, l.data AS described,
                l.worker_id, l.incarnation, l.owner AS owned_by,
                {own("l")} AND l.generation <= x.ended AS has_ended,
                x.claims AND l.owner IS NULL AND NOT ({own("l")}) AND {DOUBT} AS is_doubtful,
                CASE WHEN NOT x.owns OR (x.claims AND l.owner IS NOT NULL) THEN l.owner
                    ELSE x.owner END AS owner
            FROM sayings AS x JOIN saying_locks AS l ON l.session_id = x.id
        ), saying_updates AS (
            UPDATE {names.sessions} AS s SET
                owner = f.owner,
                capabilities = CASE
                    WHEN f.owns OR f.brings THEN s.capabilities ELSE f.capabilities END,
                elicitation = CASE
                    WHEN f.owns OR f.brings THEN s.elicitation ELSE f.elicitation END,
                data = CASE WHEN f.brings THEN f.data ELSE s.data END
            FROM saying_found AS f
            WHERE s.session_id = f.id AND NOT f.has_ended AND NOT f.is_doubtful AND NOT f.differs
                AND (NOT f.owns OR f.owner IS DISTINCT FROM f.owned_by)
            RETURNING s.session_id
        )"""


def _answers(names: Names) -> str:
    return f"""
        SELECT 'sayings', x.n,
            CASE WHEN NOT x.there THEN CASE WHEN {DOUBT} THEN 'doubtful' ELSE 'none' END
                WHEN f.has_ended THEN 'none'
                WHEN f.n IS NULL THEN 'locked'
                WHEN f.is_doubtful THEN 'doubtful'
                WHEN f.differs THEN '{_DIFFERS}'
                WHEN f.owns AND f.owner IS NOT DISTINCT FROM f.owned_by THEN 'done'
                WHEN u.session_id IS NULL THEN 'locked'
                ELSE 'done' END,
            f.worker_id, f.incarnation, f.owner, NULL, false, NULL, 0,
            CASE WHEN f.differs THEN f.described END
        FROM sayings AS x
        LEFT JOIN saying_found AS f ON f.n = x.n
        LEFT JOIN saying_updates AS u ON u.session_id = x.id"""


def _encode(write: SetOwner | ClaimOwner | SetCapabilities | SetData) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "id": write.session_id,
        "ended": write.ended,
        "owns": False,
        "claims": False,
        "brings": False,
        "compares": False,
    }
    if isinstance(write, SetData):
        compares = write.only_if is not Keep.AS_IS
        return {
            **encoded,
            "brings": True,
            "data": write.data,
            "compares": compares,
            "only_if": write.only_if if compares else None,
        }
    if isinstance(write, SetCapabilities):
        return {
            **encoded,
            "capabilities": write.capabilities.encoded,
            "elicitation": write.capabilities.elicitation,
        }
    claims = isinstance(write, ClaimOwner)
    return {**encoded, "owns": True, "claims": claims, "owner": write.owner}


def _decode(worker: Worker, row: Any) -> Holder | Differs | None:
    if row.state == "none":
        return None
    if row.state == _DIFFERS:
        return Differs(data=row.data)
    return Holder(worker_id=row.worker_id, incarnation=row.incarnation, owner=row.owner)


SAYINGS = Kind(
    name="sayings",
    writes=(SetOwner, ClaimOwner, SetCapabilities, SetData),
    ctes=_sayings,
    writing=("saying_updates",),
    answers=_answers,
    tells_data=True,
    encode=_encode,
    decode=_decode,
)
