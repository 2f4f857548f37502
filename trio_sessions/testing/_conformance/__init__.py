"""The contract of a store as checks that any store can be put to, part by part."""

from trio_sessions.testing._conformance._claims import claim_checks
from trio_sessions.testing._conformance._leases import lease_checks
from trio_sessions.testing._conformance._manners import manner_checks
from trio_sessions.testing._conformance._messages import message_checks
from trio_sessions.testing._conformance._owners import owner_checks
from trio_sessions.testing._conformance._rows import row_checks
from trio_sessions.testing._conformance._takeovers import takeover_checks
from trio_sessions.testing._conformance._tools import Check
from trio_sessions.testing._conformance._workers import worker_checks

__all__ = ["message_conformance", "row_conformance", "store_conformance", "worker_conformance"]

row_conformance: tuple[Check, ...] = (
    *manner_checks,
    *row_checks,
    *claim_checks,
    *takeover_checks,
    *owner_checks,
)
"""`Store` and `RowStore`, one check a rule; see `store_conformance`."""

message_conformance: tuple[Check, ...] = message_checks
"""`MessageStore`, one check a rule; see `store_conformance`."""

worker_conformance: tuple[Check, ...] = (*worker_checks, *lease_checks)
"""`WorkerStore`, one check a rule; see `store_conformance`."""

store_conformance: tuple[Check, ...] = (
    *row_conformance,
    *message_conformance,
    *worker_conformance,
)
"""The contract of a `SessionStore`. Each check is called with a function that makes a store::

    @pytest.mark.parametrize("check", store_conformance, ids=lambda check: check.__name__)
    async def test_my_store_keeps_the_contract(check):
        await check(MyStore)
"""
