"""The counters of one registry, from its opening on."""

from dataclasses import dataclass

from trio_sessions.types import CleanupReport

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Each is a field of `trio_sessions.types.RegistryStatistics`, and explained there."""

    passes: int = 0
    failed_passes: int = 0
    incomplete_passes: int = 0
    brakes: int = 0
    database_rewinds: int = 0
    removed_disconnected: int = 0
    removed_missing: int = 0
    restored: int = 0
    expired: int = 0
    check_failures: int = 0
    refresh_failures: int = 0
    disconnect_failures: int = 0
    messages_dropped: int = 0
    topic_messages_dropped: int = 0

    def count_pass(self, report: CleanupReport, *, complete: bool) -> None:
        """Count what a pass that ran to its end has done."""
        self.passes += 1
        self.incomplete_passes += not complete
        self.removed_disconnected += len(report.disconnected)
        self.removed_missing += len(report.missing)
        self.restored += len(report.restored)
        self.expired += report.expired
        self.check_failures += len(report.check_failures)
        self.refresh_failures += len(report.refresh_failures)

    def count_failed_pass(self) -> None:
        """Count a pass that ended in an unexpected error."""
        self.failed_passes += 1

    def count_brake(self) -> None:
        """Count a pass that holds sessions because too many are missing at once."""
        self.brakes += 1

    def count_rewind(self) -> None:
        """Count that the database had forgotten what it had confirmed."""
        self.database_rewinds += 1

    def count_disconnect_failures(self, failures: int) -> None:
        """Count transports that did not disconnect."""
        self.disconnect_failures += failures

    def count_dropped(self, messages: int) -> None:
        """Count messages that nobody will read."""
        self.messages_dropped += messages

    def count_topic_dropped(self, messages: int) -> None:
        """Count messages of topics that a subscriber did not take in time."""
        self.topic_messages_dropped += messages
