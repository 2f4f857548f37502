"""Test tools for your own stores and transports; they need the extra ``testing``."""

from trio_sessions.testing import _asserts as _asserts  # before the checks are imported
from trio_sessions.testing._conformance import (
    Connection,
    SilentConnection,
    conformance_tests,
    data_conformance,
    inspection_conformance,
    limit_conformance,
    log_conformance,
    mail_conformance,
    message_conformance,
    revocation_conformance,
    row_conformance,
    store_conformance,
    transport_conformance,
    worker_conformance,
)
from trio_sessions.testing._faults import Fault, FaultyStore
from trio_sessions.testing._machine import RegistryMachine
from trio_sessions.testing._simulation import SimulationReport, simulate
from trio_sessions.testing._transports import FakeTransport
from trio_sessions.testing._virtual_time import virtual_time

__all__ = [
    "Connection",
    "FakeTransport",
    "Fault",
    "FaultyStore",
    "RegistryMachine",
    "SilentConnection",
    "SimulationReport",
    "conformance_tests",
    "data_conformance",
    "inspection_conformance",
    "limit_conformance",
    "log_conformance",
    "mail_conformance",
    "message_conformance",
    "revocation_conformance",
    "row_conformance",
    "simulate",
    "store_conformance",
    "transport_conformance",
    "virtual_time",
    "worker_conformance",
]
