"""Pictures of values by layer and head, as SVG."""

from collections.abc import Iterator, Sequence

import numpy as np

_CELL, _LABELS = 9, 64
_LEAST = 0.005
_WIDE = 3 * _CELL


def heat_map(values: np.ndarray) -> str:
    """values: float [layers, heads, keys], in [0, 1]. One line for each head, one column for each key.

    The square root is what is shown, so that small values can be told from none; cells below 0.005
    are left white.
    """
    layers, heads, keys = values.shape
    cells: list[str] = []
    for layer in range(layers):
        top = 24 + layer * (heads * _CELL + 4)
        cells.append(f'<text x="4" y="{top + 9}">layer {layer}</text>')
        for head, key in np.argwhere(values[layer] >= _LEAST):
            shade = round(255 * (1 - float(values[layer, head, key]) ** 0.5))
            at = f'x="{_LABELS + key * _CELL}" y="{top + head * _CELL}"'
            cells.append(
                f'<rect {at} width="{_CELL}" height="{_CELL}" fill="rgb({shade},{shade},255)">'
                f"<title>{layer}:{head}, key {key}: {values[layer, head, key]:.3f}</title></rect>"
            )
    title = f"mean attention by key, 0 to {keys - 1}; darkest is 1"
    return _picture(keys * _CELL, layers * (heads * _CELL + 4), title, cells)


def gain_map(layers: Sequence[int], gains: np.ndarray, objective: str) -> str:
    """gains: float [layers, heads], of the heads of `layers`. One line for each layer, one column for each head.

    Gains are blue and losses red, the darkest of them that of the largest magnitude.
    """
    largest = float(np.abs(gains).max(initial=0))
    title = f"{objective}: gain of each head alone, by layer; darkest is {largest:.3g}"
    cells = list(_gain_cells(layers, gains, largest))
    # No narrower than its title.
    width = max(gains.shape[1] * _WIDE, 6 * len(title) - _LABELS)
    return _picture(width, len(gains) * _WIDE, title, cells)


def _gain_cells(layers: Sequence[int], gains: np.ndarray, largest: float) -> Iterator[str]:
    for line, (layer, row) in enumerate(zip(layers, gains, strict=True)):
        top = 24 + line * _WIDE
        yield f'<text x="4" y="{top + 17}">layer {layer}</text>'
        for head, gain in enumerate(map(float, row)):
            shade = 255 if not gain else round(255 * (1 - abs(gain) / largest))
            colour = f"{shade},{shade},255" if gain > 0 else f"255,{shade},{shade}"
            yield (
                f'<rect x="{_LABELS + head * _WIDE}" y="{top}" width="{_WIDE}" height="{_WIDE}" '
                f'fill="rgb({colour})" stroke="white"><title>{layer}:{head}: {gain:+.5f}</title></rect>'
            )


def _picture(width: int, height: int, title: str, cells: Sequence[str]) -> str:
    """width, height: of the cells."""
    size = f'width="{_LABELS + width + 8}" height="{28 + height}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">'
    )
    ground = f'<rect {size} fill="white"/>'
    return "\n".join(
        [head, ground, f'<text x="{_LABELS}" y="14">{title}</text>', *cells, "</svg>", ""]
    )
