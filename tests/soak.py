"""Whether the suites search for long, in `make soak`, or only as long as the gate may take."""

import os

SOAK = bool(os.environ.get("TRIO_SESSIONS_SOAK"))
TIMES = 150 if SOAK else 1
