"""A forest plot as SVG: each setting on each task with its interval, and its difference from none."""

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from heed_server.evaluate.report import Found
from heed_server.evaluate.settings import NONE

_ROW, _TOP, _PANEL, _GAP, _LETTER = 18, 44, 260, 60, 6.2
_COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #8c6d31".split()
_ENDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Where an axis of differences may end."""


def forest(found: Found) -> str:
    """The whole document: of each task its first measure, which is the accuracy where there is one."""
    rows: list[tuple[str, dict[str, Any] | None]] = []
    for task, each in found.items():
        measure = next(iter(each["settings"][NONE]["measures"]))
        rows.append((f"{task}: {measure}, {each['items']} items", None))
        rows += [(name, told["measures"][measure]) for name, told in each["settings"].items()]
    names = list(dict.fromkeys(name for name, row in rows if row is not None))
    label = 24 + _LETTER * max(len(text) for text, _ in rows)
    bottom = _TOP + _ROW * len(rows)
    width, height = label + 2 * (_PANEL + _GAP), bottom + 28
    changes = [abs(bound) for _, row in rows if row is not None for bound in row["difference"]]
    end = next((each for each in _ENDS if each >= max(changes)), _ENDS[-1])
    values = _Axis(label, 0, 1, bottom)
    differences = _Axis(label + _PANEL + _GAP, -end, end, bottom)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width:.0f}" height="{height}" fill="white"/>',
        *values.drawn("value, 95 %"),
        *differences.drawn("difference from none, paired, 95 %"),
    ]
    for number, (text, row) in enumerate(rows):
        middle = _TOP + _ROW * number + _ROW / 2
        weight = ' font-weight="bold"' if row is None else ""
        indent = 8 if row is None else 20
        parts.append(f'<text x="{indent}" y="{middle + 4:.1f}"{weight}>{escape(text)}</text>')
        if row is None:
            continue
        colour = "#444" if text == NONE else _COLOURS[(names.index(text) - 1) % len(_COLOURS)]
        parts += values.whisker(row["value"], middle, colour)
        if text != NONE:
            parts += differences.whisker(row["difference"], middle, colour)
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """A panel from `low` to `high`. left, bottom: of its frame."""

    def __init__(self, left: float, low: float, high: float, bottom: float) -> None:
        self._left, self._low, self._high, self._bottom = left, low, high, bottom

    def drawn(self, title: str) -> list[str]:
        """Title, and a line for each tick; 0 is darker."""
        parts = [f'<text x="{self._left:.1f}" y="20" font-weight="bold">{title}</text>']
        for step in range(5):
            value = self._low + (self._high - self._low) * step / 4
            across, shade = self._across(value), "#888" if value == 0 else "#e4e4e4"
            parts.append(_line(across, _TOP - 8, across, self._bottom, shade))
            parts.append(
                f'<text x="{across:.1f}" y="{self._bottom + 14}" text-anchor="middle">{value:g}</text>'
            )
        return parts

    def whisker(self, found: Sequence[float], middle: float, colour: str) -> list[str]:
        """found: mean, low and high."""
        mean, low, high = map(self._across, found)
        return [
            _line(low, middle, high, middle, colour),
            f'<circle cx="{mean:.1f}" cy="{middle:.1f}" r="3.5" fill="{colour}">'
            f"<title>{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]</title></circle>",
        ]

    def _across(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._left + share * _PANEL


def _line(x0: float, y0: float, x1: float, y1: float, colour: str) -> str:
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" '
        f'stroke="{colour}" stroke-width="1.6"/>'
    )
