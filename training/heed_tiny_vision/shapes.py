"""The ten kinds of things, drawn as masks over the square [-1, 1]²: u to the right, v downwards."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]
Mask = NDArray[np.bool_]

STAR_POINTS = 5
STAR_INNER = 0.42


def disc(u: Grid, v: Grid, x: float, y: float, radius: float) -> Mask:
    return (u - x) ** 2 + (v - y) ** 2 <= radius**2


def box(u: Grid, v: Grid, left: float, top: float, right: float, bottom: float) -> Mask:
    return (u >= left) & (u <= right) & (v >= top) & (v <= bottom)


def polygon(u: Grid, v: Grid, corners: list[tuple[float, float]]) -> Mask:
    """Inside by the even-odd rule: a ray to the right crosses an odd number of edges."""
    inside = np.zeros(u.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 == y1:
            continue
        spans = (v >= min(y0, y1)) & (v < max(y0, y1))
        inside ^= spans & (u < x0 + (v - y0) * (x1 - x0) / (y1 - y0))
    return inside


def star(u: Grid, v: Grid) -> Mask:
    corners = []
    for number in range(2 * STAR_POINTS):
        radius = 1.0 if number % 2 == 0 else STAR_INNER
        angle = math.pi * number / STAR_POINTS
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return polygon(u, v, corners)


def moon(u: Grid, v: Grid) -> Mask:
    return disc(u, v, 0.0, 0.0, 1.0) & ~disc(u, v, 0.5, -0.1, 0.85)


def house(u: Grid, v: Grid) -> Mask:
    roof = polygon(u, v, [(-1.0, 0.0), (0.0, -1.0), (1.0, 0.0)])
    return (roof | box(u, v, -0.75, 0.0, 0.75, 1.0)) & ~box(u, v, -0.2, 0.4, 0.2, 1.0)


def tree(u: Grid, v: Grid) -> Mask:
    return disc(u, v, 0.0, -0.3, 0.7) | box(u, v, -0.17, 0.2, 0.17, 1.0)


def fish(u: Grid, v: Grid) -> Mask:
    body = ((u + 0.25) / 0.75) ** 2 + (v / 0.5) ** 2 <= 1
    tail = polygon(u, v, [(0.3, 0.0), (1.0, -0.6), (1.0, 0.6)])
    return (body | tail) & ~disc(u, v, -0.6, -0.1, 0.13)


def ship(u: Grid, v: Grid) -> Mask:
    hull = polygon(u, v, [(-1.0, 0.35), (1.0, 0.35), (0.6, 1.0), (-0.6, 1.0)])
    return hull | polygon(u, v, [(-0.1, -1.0), (-0.1, 0.2), (0.8, 0.2)])


def cloud(u: Grid, v: Grid) -> Mask:
    puffs = disc(u, v, -0.5, 0.1, 0.45) | disc(u, v, 0.05, -0.2, 0.55) | disc(u, v, 0.55, 0.1, 0.42)
    return (puffs & (v < 0.45)) | box(u, v, -0.6, 0.1, 0.6, 0.45)


def flag(u: Grid, v: Grid) -> Mask:
    return box(u, v, -0.9, -1.0, -0.65, 1.0) | box(u, v, -0.65, -1.0, 0.9, 0.0)


def cup(u: Grid, v: Grid) -> Mask:
    handle = disc(u, v, 0.5, 0.0, 0.5) & ~disc(u, v, 0.5, 0.0, 0.26)
    return box(u, v, -0.85, -0.8, 0.4, 0.8) | (handle & (u > 0.4))


def key(u: Grid, v: Grid) -> Mask:
    bow = disc(u, v, -0.5, 0.0, 0.5) & ~disc(u, v, -0.5, 0.0, 0.2)
    teeth = box(u, v, 0.3, 0.0, 0.52, 0.6) | box(u, v, 0.75, 0.0, 0.97, 0.6)
    return bow | box(u, v, -0.15, -0.18, 1.0, 0.18) | teeth


KINDS: dict[str, Callable[[Grid, Grid], Mask]] = {
    "star": star,
    "moon": moon,
    "house": house,
    "tree": tree,
    "fish": fish,
    "ship": ship,
    "cloud": cloud,
    "flag": flag,
    "cup": cup,
    "key": key,
}
