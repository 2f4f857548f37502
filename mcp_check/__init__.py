"""Put an MCP server with two workers on our router, break it, and compare with the SDK alone.

Run by ``make mcp-check``. Workers are processes of their own, on loopback; clients are the SDK's,
and each request of theirs goes to a worker by chance, as behind a load balancer without stickiness.
"""
