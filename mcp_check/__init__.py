"""Put an MCP server with two workers on our router, break it, and compare with the SDK alone.

Run by ``make mcp-check``; ``make mcp-check --silent > docs/mcp-check.txt`` keeps what it prints.
Workers are processes of their own, on loopback; clients are the SDK's, or requests by hand where
that shows more, and each request goes to a worker by chance, as behind a load balancer without
stickiness. What the how-to promises must hold. What a call takes is held against the SDK alone: a
busy machine may miss these targets, and nothing fails for it.
"""
