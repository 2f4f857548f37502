"""Whether the suites search for long, in `make soak`, or only as long as the gate may take.

What carries `longer` runs in the soak only: another form of what the gate tries in one form.
"""

import os

import pytest

SOAK = bool(os.environ.get("TRIO_SESSIONS_SOAK"))
TIMES = 150 if SOAK else 1
longer = pytest.mark.soak
"""Leaves a test, or some of its arguments, to the soak."""
