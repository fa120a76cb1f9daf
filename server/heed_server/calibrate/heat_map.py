"""A picture of values in [0, 1] by layer, head and key, as SVG."""

import numpy as np

_CELL, _LABELS = 9, 64
_LEAST = 0.005


def heat_map(values: np.ndarray) -> str:
    """values: float [layers, heads, keys]. One line for each head, one column for each key.

    The square root is what is shown, so that small values can be told from none; cells below 0.005
    are left white.
    """
    layers, heads, keys = values.shape
    width, height = _LABELS + keys * _CELL + 8, 28 + layers * (heads * _CELL + 4)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LABELS}" y="14">mean attention by key, 0 to {keys - 1}; darkest is 1</text>',
    ]
    for layer in range(layers):
        top = 24 + layer * (heads * _CELL + 4)
        parts.append(f'<text x="4" y="{top + 9}">layer {layer}</text>')
        for head, key in np.argwhere(values[layer] >= _LEAST):
            shade = round(255 * (1 - float(values[layer, head, key]) ** 0.5))
            parts.append(
                f'<rect x="{_LABELS + key * _CELL}" y="{top + head * _CELL}" width="{_CELL}" '
                f'height="{_CELL}" fill="rgb({shade},{shade},255)">'
                f"<title>{layer}:{head}, key {key}: {values[layer, head, key]:.3f}</title></rect>"
            )
    return "\n".join([*parts, "</svg>", ""])
