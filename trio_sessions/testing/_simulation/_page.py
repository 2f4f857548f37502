"""A report as a page of Markdown, to be kept."""

from collections import Counter

from trio_sessions.testing._simulation._report import SimulationReport, counted

__all__ = ["page"]


def page(report: SimulationReport, *, origin: str) -> str:
    """Write a report as Markdown.

    Args:
        report: of many runs.
        origin: where they came from, such as ``seed 1``.
    """
    never = ", ".join(report.rules_never_followed)
    hours = report.virtual / 3600
    done = (
        f"{counted(report.steps, 'step')} in {counted(report.runs, 'run')} from {origin}, "
        f"{report.rate:.0f} steps a second: {counted(round(hours), 'hour')} of virtual time, "
        f"{counted(report.commits, 'commit')}."
    )
    tables = {
        "Faults injected": report.faults,
        "Removals that were right": report.right,
        "Answers that were judged": report.judged,
        "Rules followed": report.rules,
        "Runs of each mix of rules": report.mixes,
    }
    paragraphs = [
        done,
        f"Violations: **{report.wrong}** (a removal that was wrong is one).",
        *(_table(title, counts) for title, counts in tables.items() if counts),
    ]
    if never:
        paragraphs.append(f"Rules never followed: {never}.")
    return "\n\n".join(paragraphs) + "\n"


def _table(title: str, counts: Counter[str]) -> str:
    lines = [f"| {title} | |", "| --- | ---: |"]
    lines += [f"| {name} | {count:,} |" for name, count in counts.most_common()]
    return "\n".join(lines)
