"""``python -m trio_sessions.cli``: the same as ``trio-sessions``."""

import sys

from trio_sessions.cli import main

if __name__ == "__main__":
    sys.exit(main())
