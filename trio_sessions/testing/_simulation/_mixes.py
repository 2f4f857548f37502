"""How often what happens: by name, weights for a run."""

from collections.abc import Mapping

from trio_sessions.abc import Part

__all__ = ["MIXES", "WEIGHTS", "parts_of"]

WEIGHTS: Mapping[str, int] = {
    "connect": 24,
    "connect_many": 2,
    "move": 10,
    "reconnect": 4,
    "die": 6,
    "remove": 4,
    "change_answers": 3,
    "ask": 10,
    "flood": 1,
    "send": 8,
    "pass_now": 6,
    "break_link": 5,
    "break_database": 3,
    "heal": 9,
    "fail_over": 2,
    "restore": 1,
    "replace": 1,
    "restart_database": 1,
    "lag": 1,
    "fill_up": 1,
    "refuse_rows": 2,
    "hide_rows": 1,
    "set_clock": 1,
    "delete_row": 2,
    "truncate": 1,
    "truncate_by_mistake": 1,
    "pause": 2,
    "resume": 2,
    "crash": 1,
    "leave": 1,
}

_MOVES = {
    "connect": 6,
    "move": 24,
    "reconnect": 12,
    "die": 2,
    "remove": 10,
    "pass_now": 8,
    "break_link": 14,
    "break_database": 3,
    "heal": 10,
}
_BEATS = {
    "connect": 24,
    "die": 4,
    "remove": 4,
    "pass_now": 16,
    "hold_up_stamps": 12,
    "heal": 4,
    "fail_over": 1,
    "lose_the_next": 12,
}
"""Stamps are held up while a server loses its last commits: they are counted a second time."""
_RETURNS = {
    "connect": 30,
    "come_back": 60,
    "change_answers": 4,
    "pass_now": 10,
    "hold_up": 12,
    "heal": 3,
}
"""Sessions of one id follow each other on one worker, and so do what they have written."""
_OVERLAPS = {
    "connect": 30,
    "come_back": 10,
    "return_during_a_pass": 30,
    "old_writes_land": 30,
    "change_answers": 10,
}
"""Sessions end and come back while a pass waits for transports that hang, or writes overtake."""
_REVOKES = {
    "connect": 30,
    "revoke": 14,
    "move": 16,
    "reconnect": 10,
    "pass_now": 6,
    "break_link": 14,
    "break_database": 3,
    "heal": 10,
    "pause": 2,
    "resume": 3,
    "crash": 1,
    "leave": 1,
}
"""Sessions are ended for good while they move, and while their workers cannot hear of it."""
_WORDS = {
    "connect": 10,
    "move": 8,
    "reconnect": 3,
    "come_back": 5,
    "die": 2,
    "remove": 2,
    "change_answers": 1,
    "pass_now": 3,
    "say_data": 12,
    "ask_data": 16,
    "append": 16,
    "read_on": 16,
}
"""Much is said of sessions, which move, end and come back."""
_WORDS_AGAIN = {
    "connect": 12,
    "come_back": 40,
    "hold_up": 10,
    "heal": 4,
    "pass_now": 6,
    "say_data": 16,
    "ask_data": 24,
    "append": 16,
    "read_on": 24,
}
"""Sessions of one id follow each other, and what was said of the last one is still on its way."""
_MAIL = {
    "connect": 4,
    "pass_now": 2,
    "call": 20,
    "stream": 8,
    "subscribe": 8,
    "publish": 12,
}
"""Workers call each other, and listen."""
_ADOPTIONS = {
    "connect": 20,
    "adopt": 24,
    "move": 6,
    "reconnect": 3,
    "die": 4,
    "remove": 3,
    "pass_now": 6,
    "call": 1,
    "say_data": 4,
    "ask_data": 4,
}
"""Sessions are adopted, by whoever is first."""
_LIMITS = {
    "connect": 40,
    "connect_many": 2,
    "move": 10,
    "reconnect": 5,
    "come_back": 6,
    "touch": 10,
    "die": 4,
    "remove": 6,
    "pass_now": 4,
}
"""Owners have as many sessions as they may have, and some are silent."""
_PARTS = {
    "connect": 12,
    "move": 6,
    "come_back": 4,
    "die": 2,
    "remove": 2,
    "pass_now": 2,
    "say_data": 6,
    "ask_data": 8,
    "append": 8,
    "read_on": 8,
    "adopt": 6,
    "touch": 3,
    "call": 4,
    "stream": 2,
    "subscribe": 3,
    "publish": 4,
}
"""All that is optional, without a fault: so nothing is excused."""
_DRAINS = {
    "connect": 24,
    "connect_many": 1,
    "drain": 8,
    "knock": 8,
    "move": 4,
    "die": 3,
    "remove": 2,
    "pass_now": 6,
    "say_data": 4,
    "ask_data": 6,
    "append": 4,
    "read_on": 6,
    "list_workers": 4,
}
"""Workers are emptied, and started anew."""
_ORPHANS = {
    "connect": 24,
    "connect_many": 1,
    "crash_and_adopt": 6,
    "adopt": 2,
    "move": 3,
    "die": 2,
    "pass_now": 4,
    "append": 16,
    "read_on": 6,
    "say_data": 4,
    "ask_data": 4,
    "describe": 4,
}
"""Workers die, and their sessions are adopted by whoever is first."""
_QUESTIONS = {
    "connect": 20,
    "move": 8,
    "reconnect": 3,
    "come_back": 3,
    "die": 4,
    "remove": 4,
    "pass_now": 3,
    "drain": 1,
    "describe": 24,
    "list_sessions": 12,
    "list_workers": 12,
}
"""Operators ask for sessions and workers."""
_MISHAPS = {
    "break_link": 6,
    "break_database": 2,
    "hold_up": 1,
    "heal": 10,
    "fail_over": 1,
    "restart_database": 1,
    "lag": 1,
    "refuse_rows": 1,
    "hide_rows": 1,
    "delete_row": 1,
    "truncate_by_mistake": 1,
    "pause": 1,
    "resume": 2,
    "crash": 1,
    "leave": 1,
}
"""Of every kind, some."""
_LEASES = {
    "connect": 24,
    "move": 4,
    "reconnect": 2,
    "die": 3,
    "pass_now": 2,
    "oversleep": 10,
    "hang_pass": 10,
}
"""Workers lose their leases, and the database is well."""
_OLD_MARKS = {
    "connect": 6,
    "move": 2,
    "die": 6,
    "remove": 4,
    "pass_now": 4,
    "delete_what_moved": 10,
}
"""Rows that were deleted are written anew by workers from which the sessions had moved away."""
MIXES: Mapping[str, Mapping[str, int]] = {
    "all": WEIGHTS,
    "moves": _MOVES,
    "losses": {**_MOVES, "connect": 20, "fail_over": 14, "move": 8},
    "beats": _BEATS,
    "returns": _RETURNS,
    "overlaps": _OVERLAPS,
    "revokes": _REVOKES,
    "parts": _PARTS,
    "words": _WORDS,
    "mail": _MAIL,
    "lost mail": {**_MAIL, **_MISHAPS},
    "adoptions": _ADOPTIONS,
    "lost adoptions": {**_ADOPTIONS, **_MISHAPS},
    "limits": _LIMITS,
    "lost limits": {**_LIMITS, **_MISHAPS},
    "words again": _WORDS_AGAIN,
    "forgotten words": {**_WORDS, "fail_over": 6, "restore": 2, "replace": 1},
    "lost words": {**_WORDS, **_MISHAPS},
    "drains": _DRAINS,
    "lost drains": {**_DRAINS, **_MISHAPS},
    "orphans": _ORPHANS,
    "lost orphans": {**_ORPHANS, **_MISHAPS},
    "questions": _QUESTIONS,
    "lost questions": {
        **_QUESTIONS,
        **_MISHAPS,
        "fail_over": 4,
        "restore": 1,
        "replace": 1,
        "lag": 4,
        "set_clock": 1,
    },
    "leases": _LEASES,
    "old marks": _OLD_MARKS,
}
"""Where everything happens, little of one kind does."""

_PLAYS: Mapping[str, Part] = {
    "revoke": Part.REVOCATION,
    "say_data": Part.DATA,
    "append": Part.LOGS,
    "call": Part.MAIL,
    "adopt": Part.DATA,
    "touch": Part.LIMITS,
    "describe": Part.INSPECTION,
    "drain": Part.INSPECTION,
}
"""Rules for which the store has to keep a part of the contract that is optional."""


def parts_of(mix: str) -> frozenset[Part]:
    """Return the optional parts of the contract that the rules of a mix need."""
    return frozenset(part for name, part in _PLAYS.items() if name in MIXES[mix])
