"""Line plots as SVG, by hand: one panel beside the other, one line per name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN, LEGEND = 420, 320, 56, 150
COLOURS = "#1b6ca8 #d1495b #2e8b57 #8f5db7 #e09f3e #3c3c3c #0fa3b1 #b56576 #7a9e2f #a0522d".split()


@dataclass(frozen=True)
class Panel:
    """values: [name][place on the x axis]. full: the height of the dashed line, for an unchanged cache.
    ticks: ascending; the first and the last are the ends of the axis."""

    title: str
    label: str
    values: Mapping[str, Sequence[float]]
    full: float
    ticks: Sequence[float]


def svg(x: Sequence[float], panels: Sequence[Panel], x_label: str) -> str:
    """The whole document. A name has the same colour in every panel; the last one is dotted."""
    names = list(panels[0].values)
    total = WIDTH * len(panels) + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{total}" height="{HEIGHT}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(x, panel, number * WIDTH, x_label)
    for number, name in enumerate(names):
        y = MARGIN + 18 * number
        left = WIDTH * len(panels)
        parts.append(_line([(left, y - 4), (left + 22, y - 4)], *_style(number, names)))
        parts.append(f'<text x="{left + 28}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(x: Sequence[float], panel: Panel, left: float, x_label: str) -> list[str]:
    low, high = panel.ticks[0], panel.ticks[-1]

    def place(at: float, value: float) -> tuple[float, float]:
        across = (at - x[0]) / (x[-1] - x[0])
        up = (value - low) / (high - low)
        return (
            left + MARGIN + across * (WIDTH - 1.5 * MARGIN),
            HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN),
        )

    parts = [
        f'<text x="{left + MARGIN}" y="{MARGIN / 2}" font-weight="bold">{panel.title}'
        f'<tspan font-weight="normal"> {panel.label}</tspan></text>',
        f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">{x_label}</text>',
    ]
    for at in x:
        across, bottom = place(at, low)
        parts.append(_line([(across, bottom), (across, bottom + 4)], "#888"))
        parts.append(
            f'<text x="{across:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{at:g}</text>'
        )
    for tick in panel.ticks:
        edge, height = place(x[0], tick)
        parts.append(_line([(edge, height), place(x[-1], tick)], "#e4e4e4"))
        parts.append(
            f'<text x="{edge - 6:.1f}" y="{height + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    parts.append(_line([place(x[0], panel.full), place(x[-1], panel.full)], "#888", "6 4"))
    names = list(panel.values)
    for number, name in enumerate(names):
        points = [place(at, value) for at, value in zip(x, panel.values[name], strict=True)]
        parts.append(_line(points, *_style(number, names)))
    return parts


def _style(number: int, names: Sequence[str]) -> tuple[str, str]:
    if number == len(names) - 1:
        return "#000", "2 3"
    return COLOURS[number % len(COLOURS)], ""


def _line(points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashed}/>'
