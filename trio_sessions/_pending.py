"""What is said of a session and is still to be written, with its row. Synchronous.

It passes on to whoever holds the id next here, so it stays the same for as long as one does. What
is to be written *again* was in the row when the database went back: anything newer goes before it.
See docs/decisions/0010-evidence.md.
"""

from trio_sessions._json import size_of
from trio_sessions.types import Capabilities, Holder
from trio_sessions.writes import Claim, Keep

__all__ = ["Pending"]


class Pending:
    """What is to be written with a session's row, by whichever claim: owner, capabilities, data."""

    __slots__ = (
        "_capabilities_again",
        "_data_again",
        "_owner_again",
        "capabilities",
        "data",
        "owner",
    )

    def __init__(self) -> None:
        # Each claim asks for these: attributes. Only the methods below set them.
        self.owner: str | Keep | None = Keep.AS_IS
        """The owner to be written; None: nobody."""
        self.capabilities: Capabilities | None = None
        """The capabilities to be written, if there are any."""
        self.data: str | Keep | None = Keep.AS_IS
        """The data to be written, encoded; None: none."""
        self._owner_again: str | None = None
        self._capabilities_again: Capabilities | None = None
        self._data_again: str | None = None

    @property
    def is_data_said(self) -> bool:
        """Whether data set here waits to be written, not only what the row had before."""
        return self.data is not Keep.AS_IS and not self._is_data_again

    @property
    def _is_data_again(self) -> bool:
        return self._data_again is not None and self.data is self._data_again

    @property
    def size(self) -> int:
        """Bytes to be written, about."""
        size = 0 if self.capabilities is None else size_of(self.capabilities.encoded)
        return size + size_of(self.data) if isinstance(self.data, str) else size

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be written."""
        return self.owner is Keep.AS_IS and self.capabilities is None and self.data is Keep.AS_IS

    def note_owner(self, owner: str | None) -> None:
        """Write this owner with the row."""
        self.owner, self._owner_again = owner, None

    def note_capabilities(self, capabilities: Capabilities) -> None:
        """Write these capabilities with the row."""
        self.capabilities, self._capabilities_again = capabilities, None

    def note_data(self, data: str | None) -> None:
        """Write this data with the row."""
        self.data, self._data_again = data, None

    def note_again(
        self, holder: Holder, capabilities: Capabilities | None, data: str | Keep | None
    ) -> None:
        """Repeat with the row what it had before, but for what is newer and still to be written."""
        if self.owner is Keep.AS_IS and holder.owner is not None:  # else somebody may have set one
            self.owner = self._owner_again = holder.owner
        if self.capabilities is None:
            self.capabilities = self._capabilities_again = capabilities
        if self.data is Keep.AS_IS and isinstance(data, str):
            self.data = self._data_again = data

    # A new history may have its first batch under way when all is noted once more. What that batch
    # says of the session is newer than what is noted, and its answer comes before the next claim.

    @property
    def owner_again(self) -> str | None:
        """The owner to be written once more, as the row had it before; None: there is none."""
        return self._owner_again if self.owner == self._owner_again else None

    def supersede_owner(self, owner: str | None) -> None:
        """Write this owner instead of one that is to be written once more."""
        if self.owner_again is not None:
            self.owner, self._owner_again = owner, None

    def supersede_capabilities(self, capabilities: Capabilities) -> None:
        """Write these capabilities instead of some that are to be written once more."""
        if self.capabilities is not None and self.capabilities is self._capabilities_again:
            self.capabilities, self._capabilities_again = capabilities, None

    def supersede_data(self, data: str | None) -> None:
        """Write this data instead of what is to be written once more."""
        if self._is_data_again:
            self.data, self._data_again = data, None

    def forget(self, claim: Claim) -> None:
        """Forget what a claim has written, unless something else has been said meanwhile."""
        if self.owner == claim.owner:
            self.owner = Keep.AS_IS
        if self.capabilities is claim.capabilities:
            self.capabilities = None
        if self.data == claim.data:
            self.data = Keep.AS_IS
