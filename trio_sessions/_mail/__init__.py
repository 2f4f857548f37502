"""Mail between workers, one room of the house: topics, calls and streams are all letters.

`Mail` is its door. Inside, from below: `_letters` (what stands on them), `_sockets` (where workers
of one host listen), `_lanes` (by a socket or by the database), `_sending` (on their way out),
`_incoming` (what comes by sockets), `_seen` (what comes again), `_reader` (what users iterate
over), `_pending` and `_calling` (the caller's side), `_outflow` and `_serving` (the callee's side),
`_topics`, `_watch` (who lives), `_office` (on their way in). See docs/decisions/0013-mcp.md.
"""

from trio_sessions._mail._calling import Stream
from trio_sessions._mail._reader import Reader
from trio_sessions._mail._room import Mail
from trio_sessions._mail._topics import Subscription

__all__ = ["Mail", "Reader", "Stream", "Subscription"]
