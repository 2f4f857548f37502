"""A report as a page of Markdown, to be kept."""

from collections import Counter

from trio_sessions.testing._simulation._report import SimulationReport

__all__ = ["page"]


def page(report: SimulationReport, *, seed: int) -> str:
    """Write a report as Markdown.

    Args:
        report: of many runs.
        seed: that they came from.
    """
    never = ", ".join(report.rules_never_followed)
    hours = report.virtual / 3600
    done = (
        f"{report.steps:,} steps in {report.runs:,} runs from seed {seed}, {report.rate:.0f} steps "
        f"a second: {hours:,.0f} hours of virtual time, {report.commits:,} commits."
    )
    counted = {
        "Faults injected": report.faults,
        "Removals that were right": report.right,
        "Answers that were judged": report.judged,
        "Rules followed": report.rules,
        "Runs of each mix of rules": report.mixes,
    }
    paragraphs = [
        done,
        f"Violations, removals that were wrong among them: **{report.wrong}**.",
        *(_table(title, counts) for title, counts in counted.items() if counts),
    ]
    if never:
        paragraphs.append(f"Never followed: {never}.")
    return "\n\n".join(paragraphs) + "\n"


def _table(title: str, counts: Counter[str]) -> str:
    lines = [f"| {title} | |", "| --- | ---: |"]
    lines += [f"| {name} | {count:,} |" for name, count in counts.most_common()]
    return "\n".join(lines)
