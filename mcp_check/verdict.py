"""What was measured, for people, and the targets, which are met or missed."""

from collections.abc import Iterator

from mcp_check.common import ALONE, Seen
from mcp_check.speed import OTHER, OWN, PROCESSOR, load_name, replay_name

__all__ = ["SOCKETS", "print_table", "print_targets"]

SOCKETS = " with sockets"

COLUMNS = {
    OWN: "own, median",
    OTHER: "other, median",
    OWN + PROCESSOR: "own, CPU",
    OTHER + PROCESSOR: "other, CPU",
}
"""Of the table: the time of a call, and for how long the workers used a processor for it."""

CALLS_ARE_JUDGED = ("postgresql" + SOCKETS,)
REPLAYS_ARE_JUDGED = ("postgresql", "postgresql" + SOCKETS)
TIMES_ALONE = {OWN: 1.5, OTHER: 3.0}
LOAD = (load_name(1000, 100, is_passed_on=True) + ", p99", 0.1)  # seconds
REPLAY = (replay_name(1000), 0.05)


def print_table(found: dict[str, Seen]) -> None:
    """Print what a call took in each way, and whatever else was measured."""
    print(f"\n{'tools/call':<32}" + "".join(f"{name:>15}" for name in COLUMNS.values()))
    for way, seen in found.items():
        cells = [seen.times.get(name) for name in COLUMNS]
        texts = ("-" if cell is None else f"{cell * 1000:.2f} ms" for cell in cells)
        print(f"{way:<32}" + "".join(f"{text:>15}" for text in texts))
    print()
    for way, seen in found.items():
        for name, seconds in seen.times.items():
            if name not in COLUMNS:
                print(f"{way}: {name}: {seconds * 1000:.1f} ms")


def targets(found: dict[str, Seen]) -> Iterator[tuple[bool | None, str]]:
    """Yield each target: whether it is met, or None where it is none, and what was seen.

    A busy machine may miss one. The ways that are compared run one after the other.
    """
    alone = found.get(ALONE, Seen(ALONE)).times
    for way, seen in found.items():
        if way == ALONE:
            continue
        is_judged = way in CALLS_ARE_JUDGED
        for where, most in TIMES_ALONE.items():
            for kind, by in ((PROCESSOR, "processor time"), ("", "median")):
                mine, others = seen.times.get(where + kind), alone.get(OWN + kind)
                if mine is not None and others:
                    text = (
                        f"{way}: a call at the {where}, {by}: {mine / others:.2f} x the SDK alone"
                    )
                    yield _judge(mine / others, most, f"{text} (target {most:g} x)", is_judged)
        for (name, most), judged in ((LOAD, CALLS_ARE_JUDGED), (REPLAY, REPLAYS_ARE_JUDGED)):
            if name in seen.times:
                text = f"{way}: {name}: {seen.times[name] * 1000:.1f} ms"
                text += f" (target {most * 1000:g} ms)"
                yield _judge(seen.times[name], most, text, way in judged)
        for is_met, text in seen.targets:
            yield is_met, f"{way}: {text}"


def _judge(seen: float, most: float, text: str, is_judged: bool) -> tuple[bool | None, str]:  # noqa: FBT001
    """Return a target, or what is beside one."""
    return (seen <= most, text) if is_judged else (None, text.rpartition(" (")[0])


def print_targets(found: dict[str, Seen]) -> None:
    """Print which targets are met, which are missed, and figures of ways that have none."""
    verdicts = {True: "ok  ", False: "slow", None: "    "}
    print()
    for is_met, text in targets(found):
        print(f"{verdicts[is_met]} {text}")
