"""What was said to sessions, and of them: messages and owners, as far as they are certain.

Beside `FleetModel`, and like it a model that knows no registry. A message that was accepted while
all was well must be delivered, once, in its sender's order. Where something has happened to the
session it may come, or come twice; where its session has ended, it must not come any more.
"""

from dataclasses import dataclass, field

from trio_sessions.testing._machine._model import require

__all__ = ["Mailbox", "Owner"]


@dataclass
class Mailbox:
    """The messages of one session, from its first holder to its end."""

    session_id: str
    must_come: dict[int, None] = field(default_factory=dict)
    """In the order of their sending."""
    may_come: set[int] = field(default_factory=set)
    in_memory: set[int] = field(default_factory=set)
    """Of those that must come: perhaps only their holder knows them."""
    senders: dict[int, int] = field(default_factory=dict)
    handled: list[int] = field(default_factory=list)
    is_disturbed: bool = False
    """Its holder changed, or could not acknowledge: messages may come twice, or late."""
    past: int = 0
    """The last message that was sent before all was calm: of those it may still be so."""
    left: int = 0
    """The last message to an earlier session of the id, for certain; 0: that is unknown."""

    def sent(self, message: int, sender: int, *, is_certain: bool, in_memory: bool) -> None:
        """Note a message that was accepted, or perhaps accepted."""
        self.senders[message] = sender
        if not is_certain:
            self.may_come.add(message)
            return
        self.must_come[message] = None
        if in_memory:
            self.in_memory.add(message)

    def disturb(self) -> None:
        """Let messages come twice from now on."""
        self.is_disturbed = True

    def calm_down(self) -> None:
        """Let those that are sent from now on come once, and in order."""
        self.is_disturbed = False
        self.past = max(self.senders, default=0)

    def lose_memory(self) -> None:
        """Let those that only the holder knew be lost."""
        self.disturb()
        for message in self.in_memory:
            self.must_come.pop(message, None)
        self.may_come |= self.in_memory
        self.in_memory.clear()

    def doubt(self) -> None:
        """Let all be lost: the session may have ended."""
        self.disturb()
        self.may_come |= self.must_come.keys()
        self.must_come.clear()
        self.in_memory.clear()

    def end(self) -> None:
        """Let none come any more: the session has ended, and a later one of its id is another."""
        self.must_come.clear()
        self.may_come.clear()
        self.in_memory.clear()
        self.handled.clear()
        self.is_disturbed = False

    def begin_anew(self) -> None:
        """Let none come that was sent until now: another session has the id from now on."""
        self.left = max(self.senders, default=0)

    def take(self, message: object) -> None:
        """Note that a message was handed to the session's reader, and handled.

        Raises:
            AssertionError: it should not have come, or not now.
        """
        what = f"message {message!r} came to session {self.session_id!r}"
        require(
            isinstance(message, int) and message in self.senders, f"{what}; nobody has sent that"
        )
        assert isinstance(message, int)
        require(message > self.left, f"{what}, and was sent to an earlier one of its id")
        again = message in self.handled
        require(
            again or message in self.must_come or message in self.may_come,
            f"{what}, which has begun after its end",
        )
        may_be_late = self.is_disturbed or message <= self.past
        require(not again or may_be_late, f"{what} twice, and nothing was wrong")
        sender = self.senders[message]
        later = [one for one in self.handled if self.senders[one] == sender and one > message]
        require(not later or may_be_late, f"{what} after {later}, which were sent later")
        if not again:
            self.handled.append(message)
        self.must_come.pop(message, None)
        self.may_come.discard(message)
        self.in_memory.discard(message)


@dataclass
class Owner:
    """The owner of one session, as far as it is certain."""

    session_id: str
    may_be: frozenset[str | None] | None = frozenset({None})
    """Those that it may have; None: any."""
    said: set[str | None] | None = None
    """All that anybody has said since the session began for certain; None: that is unknown."""

    def begin_anew(self) -> None:
        """Let it have nothing of an earlier session of the id."""
        self.said = {None}

    def say(self, owner: str | None) -> None:
        """Note what somebody says, whether it counts or not."""
        if self.said is not None:
            self.said.add(owner)

    def check(self, owner: str | None, where: str) -> None:
        """Say what is wrong with an owner that somebody has told.

        Raises:
            AssertionError: it is another one.
        """
        require(
            self.said is None or owner in self.said,
            f"the owner of session {self.session_id!r} is {owner!r} {where}; only an earlier one "
            "of its id had that",
        )
        if self.may_be is not None:
            expected = sorted(str(one) for one in self.may_be)
            require(
                owner in self.may_be,
                f"the owner of session {self.session_id!r} is {owner!r} {where}, and not one of "
                f"{expected}",
            )

    def claimed(self, owner: str, effective: str | None) -> None:
        """Note a claim that was answered.

        Raises:
            AssertionError: the answer cannot be.
        """
        require(effective is not None, f"session {self.session_id!r} lives, and cannot be claimed")
        require(
            self.said is None or effective in self.said,
            f"the owner of session {self.session_id!r} is {effective!r} after a claim; only an "
            "earlier one of its id had that",
        )
        if self.may_be is not None:
            may_be = (self.may_be | {owner} if None in self.may_be else self.may_be) - {None}
            Owner(self.session_id, may_be).check(effective, "after a claim")
        self.may_be = frozenset({effective})
