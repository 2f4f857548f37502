"""Does mcp-context-forge work on `trio_sessions`, and how much faster than on its own registry?

``make gateway-check`` starts the gateway on its own registry and on ours, with SQLite and with
PostgreSQL, with one worker and with two. Each time the SSE client of the ``mcp`` package
initialises, lists the tools, calls one, and disconnects; then clients post and close at once,
and many clients stay idle. Everything talks to loopback only, in a temporary folder, in bounded
time. Exit code: 0 if every check holds, 1 if not.

It runs in an environment of its own, with the gateway's packages: no part of ``make check``.
"""
