"""The messages of one worker's sessions, on their way in and out: one room of the house.

`Messages` is its door. Inside, from below: `_line` (the order of one session's messages, and
which are too old), `_held` (which of them wait, and which a reader has), `_fetching` (what is in
the store), `_door` (whose turn it is to send), `_state` (the states of an inbox), `_inbox` (what
may go out, and when), `_inboxes` (all of them), `_receipts` (acknowledging), `_forwarding` (to the
next holder), `_sending` (to the store), `_reading` (the loops that fetch), `_consumer` (the
reader's side).
"""

from trio_sessions._messages._consumer import OpenInbox
from trio_sessions._messages._room import Messages

__all__ = ["Messages", "OpenInbox"]
