"""The contract of a store as checks that any store can be put to, part by part."""

from trio_sessions.abc import Part
from trio_sessions.testing._conformance._adoptions import adoption_checks
from trio_sessions.testing._conformance._claims import claim_checks
from trio_sessions.testing._conformance._connections import on_a_connection
from trio_sessions.testing._conformance._data import data_checks
from trio_sessions.testing._conformance._doubt import doubt_checks
from trio_sessions.testing._conformance._ground import on_empty_ground, with_its_rule
from trio_sessions.testing._conformance._inspection import inspection_checks
from trio_sessions.testing._conformance._leases import lease_checks
from trio_sessions.testing._conformance._limits import limit_checks
from trio_sessions.testing._conformance._logs import log_checks
from trio_sessions.testing._conformance._mail import mail_checks
from trio_sessions.testing._conformance._manners import manner_checks
from trio_sessions.testing._conformance._messages import message_checks
from trio_sessions.testing._conformance._owners import owner_checks
from trio_sessions.testing._conformance._revocation import revocation_checks
from trio_sessions.testing._conformance._rows import row_checks
from trio_sessions.testing._conformance._shape import (
    each_method_is_as_the_contract_has_it,
    what_one_worker_writes_others_read,
)
from trio_sessions.testing._conformance._takeovers import takeover_checks
from trio_sessions.testing._conformance._tests import conformance_tests
from trio_sessions.testing._conformance._tools import Check, Checks
from trio_sessions.testing._conformance._transports import (
    Connection,
    SilentConnection,
    TransportCheck,
    transport_checks,
)
from trio_sessions.testing._conformance._workers import worker_checks

__all__ = [
    "Connection",
    "SilentConnection",
    "conformance_tests",
    "data_conformance",
    "inspection_conformance",
    "limit_conformance",
    "log_conformance",
    "mail_conformance",
    "message_conformance",
    "revocation_conformance",
    "row_conformance",
    "store_conformance",
    "transport_conformance",
    "worker_conformance",
]


def _of_stores(*checks: Check, part: Part = Part.ROWS) -> tuple[Check, ...]:
    return tuple(with_its_rule(on_empty_ground(check, part)) for check in checks)


row_conformance: tuple[Check, ...] = Checks(
    "`Store` and `RowStore`, one check a rule; see `store_conformance`.",
    with_its_rule(each_method_is_as_the_contract_has_it),
    *_of_stores(
        what_one_worker_writes_others_read,
        *manner_checks,
        *row_checks,
        *claim_checks,
        *takeover_checks,
        *owner_checks,
    ),
)

message_conformance: tuple[Check, ...] = Checks(
    "`MessageStore`, one check a rule; see `store_conformance`.",
    *_of_stores(*message_checks, part=Part.MESSAGES),
)

worker_conformance: tuple[Check, ...] = Checks(
    "`WorkerStore`, one check a rule; see `store_conformance`.",
    *_of_stores(*worker_checks, *lease_checks, *doubt_checks, part=Part.WORKERS),
)

store_conformance: tuple[Check, ...] = Checks(
    """The contract of a `SessionStore`, one check a rule, which is its docstring.

    Each check is an async function that is called with ``make_store``: a function that returns a
    store on what workers share, the same one at each call or another on the same rows. What is
    shared must be empty when a check begins: each leaves a row, by which the next one finds out
    that it is not. The first check, of each method's arguments and answers, is the one to look at
    first when several fail. For pytest, `conformance_tests` makes a test of them in one line.
    """,
    *row_conformance,
    *message_conformance,
    *worker_conformance,
)

inspection_conformance: tuple[Check, ...] = Checks(
    "`InspectionStore`, one check a rule, for a store that keeps it; see `store_conformance`.",
    *_of_stores(*inspection_checks, part=Part.INSPECTION),
)

mail_conformance: tuple[Check, ...] = Checks(
    "`MailStore`, one check a rule, for a store that keeps it; see `store_conformance`.",
    *_of_stores(*mail_checks, part=Part.MAIL),
)

revocation_conformance: tuple[Check, ...] = Checks(
    "`RevocationStore`, one check a rule, for a store that keeps it; see `store_conformance`.",
    *_of_stores(*revocation_checks, part=Part.REVOCATION),
)

data_conformance: tuple[Check, ...] = Checks(
    "`DataStore`, one check a rule, for a store that keeps it; see `store_conformance`.",
    *_of_stores(*data_checks, *adoption_checks, part=Part.DATA),
)

log_conformance: tuple[Check, ...] = Checks(
    "`LogStore`, one check a rule, for a store that keeps it; see `store_conformance`.",
    *_of_stores(*log_checks, part=Part.LOGS),
)

limit_conformance: tuple[Check, ...] = Checks(
    "`LimitStore`, one check a rule, for a store that keeps it; see `store_conformance`.",
    *_of_stores(*limit_checks, part=Part.LIMITS),
)

transport_conformance: tuple[TransportCheck, ...] = Checks(
    """The contract of a `Transport`, one check a rule, which is its docstring.

    Each check is an async function that is called with ``connect``: a function that returns an
    async context manager, whose block has a `Connection`, or better a `SilentConnection`. It raises
    `AssertionError` where the rule is broken, and `TypeError` where ``connect`` gives it something
    else than that. For pytest see `conformance_tests`.
    """,
    *(with_its_rule(on_a_connection(check)) for check in transport_checks),
)
