"""What other workers have said of sessions that are held here: it is read before it can be lost.

Owner, capabilities and data are written anew by the session's holder where the database has gone
back, as it knows them. So whoever has changed them elsewhere leaves a letter for the holder, and
that asks the database: the letter says what to ask for, and nothing is believed of it. What the
answer is worth is judged as if a user had asked (`trio_sessions._saying`). What cannot be asked now
is asked again, for as long as the session is held here: soon after an outage, but ever more seldom
where the store answers, and not this. Then it is its own fault, and nobody else waits for it.

At most one letter a second goes to one holder, with all that was said meanwhile, so a session that
is changed with each request costs no more. A letter may be lost, and a holder that collects none
never asks: then what it knows is older, as long as nobody asks it. Who claims an owner tells
nobody: it may be done with each request, and the answer does not say whether it has changed one.
See docs/decisions/0013-mcp.md.
"""

from collections.abc import Sequence

import trio

from trio_sessions._background import Background
from trio_sessions._edge import Edge, chunked
from trio_sessions._interrupts import uninterrupted
from trio_sessions._logging import get_logger
from trio_sessions._mail import Mail
from trio_sessions._owners import Owners
from trio_sessions._saying import What
from trio_sessions._session_data import SessionData
from trio_sessions._table import LocalTable
from trio_sessions.abc import Part
from trio_sessions.errors import NotSupported, SessionsError
from trio_sessions.types import Holder, fingerprint

__all__ = ["Hearsay"]

logger = get_logger("trio_sessions.rows")

_PAUSE = 1.0  # seconds for which what is said is gathered, and between two rounds of questions
_LONGEST = 30.0  # seconds between two rounds while the store answers nothing
_SELDOM = 600.0  # seconds between two questions that alone have no answer
_MOST = 10_000  # things to tell one holder, or to ask for; what is more is not told
_LETTER = 1000  # things in one letter


@uninterrupted
class Hearsay:
    """The letters on changes of sessions: to the holders of others', and about this worker's own.

    Args:
        owners: asked for owners and capabilities, and heard.
        data: asked for data, and heard.
        mail: carries the letters.
        table: the sessions held here.
        edge: says what the store keeps.
        background: where it runs.
    """

    def __init__(
        self,
        *,
        owners: Owners,
        data: SessionData,
        mail: Mail,
        table: LocalTable,
        edge: Edge,
        background: Background,
    ) -> None:
        self._owners = owners
        self._data = data
        self._mail = mail
        self._table = table
        self._edge = edge
        self._background = background
        self._to_tell: dict[str, dict[tuple[str, str], None]] = {}
        """By the incarnation of the holder."""
        self._tells = False
        self._to_ask: dict[tuple[str, str], float] = {}
        """With the seconds for which it was put off last; 0.0: it was not."""
        self._put_off: dict[tuple[str, str], tuple[float, float]] = {}
        """What could not be asked for: until when, and those seconds."""
        self._news = trio.Event()
        self._asks = False
        self._is_closed = not edge.keeps(Part.MAIL)
        owners.notify(self._said)
        data.notify(self._said)
        mail.notify_said(self._told)

    def close(self) -> None:
        """Tell nobody any more, and ask for nothing."""
        self._is_closed = True

    # ---- telling ----

    def _said(self, session_id: str, what: What, holder: Holder) -> None:
        if self._is_closed:
            return
        waiting = self._to_tell.setdefault(holder.incarnation, {})
        if len(waiting) < _MOST:
            waiting[session_id, what] = None
        if not self._tells:
            self._background.start_lasting(self._tell)
            self._tells = True

    async def _tell(self) -> None:
        try:
            while self._to_tell:
                await trio.sleep(_PAUSE)
                telling, self._to_tell = self._to_tell, {}
                for incarnation, things in telling.items():
                    for part in chunked(list(things), _LETTER):
                        self._mail.tell_said(incarnation, part)
        finally:
            self._tells = False

    # ---- asking ----

    def _told(self, things: Sequence[tuple[str, str]]) -> None:
        if self._is_closed:
            return
        here = [one for one in things if one[0] in self._table]
        for one in here[: max(0, _MOST - len(self._to_ask) - len(self._put_off))]:
            _, seconds = self._put_off.pop(one, (0.0, 0.0))
            self._to_ask[one] = seconds
        self._news.set()
        if self._to_ask and not self._asks:
            self._background.start_lasting(self._ask)
            self._asks = True

    async def _ask(self) -> None:
        pause = _PAUSE
        try:
            while self._to_ask or self._put_off:
                self._take_up_what_is_due()
                if not self._to_ask:
                    self._news = trio.Event()
                    with trio.move_on_at(min(until for until, _ in self._put_off.values())):
                        await self._news.wait()
                    continue
                pause = _PAUSE if await self._ask_for_all() else min(2 * pause, _LONGEST)
                await trio.sleep(pause)
        finally:
            self._asks = False

    def _take_up_what_is_due(self) -> None:
        now = trio.current_time()
        due = [one for one, (until, _) in self._put_off.items() if until <= now]
        for one in due:
            _, self._to_ask[one] = self._put_off.pop(one)

    async def _ask_for_all(self) -> bool:
        """Ask for one thing after another; put off what cannot be asked for.

        Returns:
            False: the store is away, and the rest was left.
        """
        while self._to_ask:
            session_id, what = asked = next(iter(self._to_ask))
            seconds = self._to_ask.pop(asked)  # before: what is said meanwhile is newer
            if session_id not in self._table:
                continue
            is_up = self._edge.contact.answers
            try:
                await self._ask_for(session_id, what)
            except NotSupported:
                continue  # a letter of somebody whose store keeps more
            except SessionsError as exc:
                logger.debug(
                    "what was said of session %s elsewhere cannot be read now: %s",
                    fingerprint(session_id),
                    exc,
                )
                self._to_ask.pop(asked, None)
                seconds = min(2 * max(seconds, _PAUSE), _SELDOM if is_up else _LONGEST)
                self._put_off[asked] = trio.current_time() + seconds, seconds
                if not is_up:
                    return False
        return True

    async def _ask_for(self, session_id: str, what: str) -> None:
        """Ask as a user would; the answer is noted on its way."""
        match what:
            case What.OWNER:
                await self._owners.get_owner(session_id)
            case What.CAPABILITIES:
                await self._owners.get_capabilities(session_id)
            case What.DATA:
                await self._data.get(session_id)
            case _:
                await trio.lowlevel.checkpoint()  # a later version's
