"""The counters of one registry, from its opening on; nobody else keeps one."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from trio_sessions._reports import BATCH_SIZES, MESSAGE_AGES, CleanupReport, RemovalReason

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """The counters, each explained at its field of `trio_sessions.types.RegistryStatistics`."""

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
    write_failures: int = 0
    sweep_failures: int = 0
    listener_failures: int = 0
    batches: int = 0
    writes: int = 0
    messages_kept: int = 0
    messages_stored: int = 0
    messages_dropped: int = 0
    topic_messages_dropped: int = 0
    removals: dict[RemovalReason, int] = field(
        default_factory=lambda: dict.fromkeys(RemovalReason, 0)
    )
    batches_by_size: list[int] = field(default_factory=lambda: [0] * (len(BATCH_SIZES) + 1))
    messages_fetched_by_age: list[int] = field(
        default_factory=lambda: [0] * (len(MESSAGE_AGES) + 1)
    )

    def frozen(self) -> dict[str, Any]:
        """Return the fields as they are now; nothing changes them afterwards."""
        now = {one.name: getattr(self, one.name) for one in fields(self)}
        now["removals"] = dict(self.removals)  # no proxy: `dataclasses.asdict` copies
        now["batches_by_size"] = tuple(self.batches_by_size)
        now["messages_fetched_by_age"] = tuple(self.messages_fetched_by_age)
        return now

    def count_pass(self, report: CleanupReport, *, complete: bool) -> None:
        """Count what a pass that ran to its end has done."""
        self.passes += 1
        self.incomplete_passes += not complete
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

    def count_removals(self, reason: RemovalReason, sessions: int) -> None:
        """Count sessions that have ended here."""
        self.removals[reason] += sessions

    def count_found(self, reason: RemovalReason, sessions: int) -> None:
        """Count sessions that a pass has ended; whether it runs to its end is another matter."""
        if reason is RemovalReason.DISCONNECTED:
            self.removed_disconnected += sessions
        elif reason is RemovalReason.MISSING or reason is RemovalReason.TAKEN_OVER:
            self.removed_missing += sessions

    def count_disconnect_failures(self, failures: int) -> None:
        """Count transports that did not disconnect."""
        self.disconnect_failures += failures

    def count_listener_failures(self, failures: int) -> None:
        """Count calls of ``on_removed`` that failed."""
        self.listener_failures += failures

    def count_sweep_failure(self) -> None:
        """Count a sweep that did not finish."""
        self.sweep_failures += 1

    def count_batch(self, writes: int) -> None:
        """Count a batch that was carried out."""
        self.batches += 1
        self.writes += writes
        self.batches_by_size[bisect_left(BATCH_SIZES, writes)] += 1

    def count_write_failures(self, writes: int) -> None:
        """Count writes that were not carried out, as their callers were told."""
        self.write_failures += writes

    def count_kept(self) -> None:
        """Count a message that needed no database."""
        self.messages_kept += 1

    def count_stored(self) -> None:
        """Count a message that was stored."""
        self.messages_stored += 1

    def count_fetched(self, ages: Iterable[float]) -> None:
        """Count messages that came from the store, after so many seconds there."""
        for age in ages:
            self.messages_fetched_by_age[bisect_left(MESSAGE_AGES, age)] += 1

    def count_dropped(self, messages: int) -> None:
        """Count messages that nobody will read."""
        self.messages_dropped += messages

    def count_topic_dropped(self, messages: int) -> None:
        """Count messages of topics that a subscriber did not take in time."""
        self.topic_messages_dropped += messages
