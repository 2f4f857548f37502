"""Draw the pass: ``python docs/pictures/draw_pass.py > docs/pictures/pass.svg``."""

from html import escape

_WIDTH, _HEIGHT = 960, 500
_BOX, _GAP, _LEFT = 288, 24, 24
_NEUTRAL = ("#eef2f7", "#55657a")
_KEPT = ("#e3f4e6", "#2c7a3d")
_UNKNOWN = ("#fdf3d8", "#9a6b00")
_REMOVED = ("#fbe4e2", "#b3261e")

_STEPS = [
    (
        "1  Check connections",
        ["is_connected() of every transport", "all at once, check_timeout each"],
        [
            (_KEPT, "True", "kept, goes on to be refreshed"),
            (_UNKNOWN, "raised, or no answer in time", "unknown: kept, and refreshed too"),
            (_REMOVED, "False", "removed and disconnected"),
        ],
    ),
    (
        "2  Refresh the leases",
        ["batch_size rows: one transaction", "max_concurrent at a time, in threads"],
        [
            (_KEPT, "in the committed answer", "kept, the lease is renewed"),
            (_UNKNOWN, "error, timeout, lock, full pool", "unknown: kept"),
            (_REMOVED, "absent from a committed answer", "removed and disconnected"),
        ],
    ),
    (
        "3  Sweep",
        ["rows of other, dead workers", "on the database's clock only"],
        [
            (_KEPT, "refreshed within session_ttl", "kept"),
            (_UNKNOWN, "an outage within session_ttl", "a grace: nobody expires"),
            (_REMOVED, "older, and the fleet could refresh", "deleted, in small batches"),
        ],
    ),
]


def _text(x: int, y: int, content: str, *, colour: str = "#1c2530", weight: str = "400") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" font-weight="{weight}">{escape(content)}</text>'


def _box(x: int, y: int, height: int, colours: tuple[str, str]) -> str:
    fill, stroke = colours
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX}" height="{height}" rx="8" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
    )


def draw() -> str:
    """Return the picture as SVG."""
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="system-ui, sans-serif" font-size="14" role="img" '
            'aria-label="The pass: check connections, refresh the leases, sweep">'
        ),
        (
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0 8 4 0 8z" fill="#55657a"/></marker>'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 36, "One pass over the sessions that a worker holds", weight="600"),
    ]
    for number, (title, details, verdicts) in enumerate(_STEPS):
        x = _LEFT + number * (_BOX + _GAP)
        lines += [_box(x, 60, 100, _NEUTRAL), _text(x + 16, 88, title, weight="600")]
        lines += [_text(x + 16, 114 + 22 * i, line) for i, line in enumerate(details)]
        if number:
            lines.append(
                f'<path d="M{x - _GAP} 110H{x}" stroke="#55657a" stroke-width="2" '
                'marker-end="url(#tip)"/>'
            )
        for place, (colours, evidence, verdict) in enumerate(verdicts):
            y = 184 + place * 84
            lines += [
                _box(x, y, 68, colours),
                _text(x + 16, y + 28, evidence),
                _text(x + 16, y + 52, verdict, colour=colours[1], weight="600"),
            ]
    lines += [
        _text(_LEFT, 470, "Whatever is unknown is kept.", weight="600"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(draw(), end="")  # noqa: T201 -- this is what it is for
