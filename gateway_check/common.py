"""What both sides of the check agree on: the clients and the gateway's workers."""

CALLS = ("initialize", "tools/list", "tools/call")
TABLES = {"own": ("mcp_sessions", "mcp_messages"), "ours": ("trio_sessions", "trio_messages")}
WORKER_HEADER = "x-check-worker"  # names the process that gave a response
SPEED_UP = 5.0  # how many times as fast as the gateway's own registry ours must be
QUICK_CALLS = 30  # of a client that makes no pause
