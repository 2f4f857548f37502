"""Values in the messages of conformance checks, where pytest runs: imported before they are."""

import sys

__all__: list[str] = []

if "pytest" in sys.modules:
    import pytest

    pytest.register_assert_rewrite("trio_sessions.testing._conformance")
