"""Scenes as pictures of 64 × 64 pixels, and what stands on each patch of the tower."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from .scenes import COLOURS, SIZE, Scene, Thing
from .shapes import KINDS

PATCH = 8  # pixels
SAMPLES = 3  # per pixel and direction, against jagged edges
LEAST_COVER = 0.1  # a thing that covers less of a patch does not name it


def render(scene: Scene) -> NDArray[np.uint8]:
    """[SIZE, SIZE, 3], red, green, blue."""
    canvas = np.full((SIZE, SIZE, 3), float(scene.background))
    for group in scene.groups:
        for thing in group.things:
            rows, columns, cover = coverage(group.kind, thing)
            colour = np.clip(np.add(COLOURS[group.colour], thing.shade), 0, 255)
            part = canvas[rows, columns]
            canvas[rows, columns] = part + cover[..., None] * (colour - part)
    return canvas.round().astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture [rows, columns, 3] of at most 256 colours as a PNG file with a palette, losslessly."""
    rows, columns, _ = pixels.shape
    palette, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    lines = places.reshape(rows, columns).astype(np.uint8)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0),
        b"PLTE": palette.tobytes(),
        b"IDAT": zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def coverage(kind: str, thing: Thing) -> tuple[slice, slice, NDArray[np.float64]]:
    """Rows and columns of the pixels around a thing, and the share of each that it covers."""
    left, top = (max(0, int(middle - thing.radius)) for middle in (thing.x, thing.y))
    right, bottom = (min(SIZE, int(m + thing.radius) + 1) for m in (thing.x, thing.y))
    u = ((np.arange(left * SAMPLES, right * SAMPLES) + 0.5) / SAMPLES - thing.x) / thing.radius
    v = ((np.arange(top * SAMPLES, bottom * SAMPLES) + 0.5) / SAMPLES - thing.y) / thing.radius
    mask = KINDS[kind](*np.meshgrid(u, v))
    split = mask.reshape(bottom - top, SAMPLES, right - left, SAMPLES)
    return slice(top, bottom), slice(left, right), split.mean(axis=(1, 3))


def patch_labels(scene: Scene) -> NDArray[np.int64]:
    """[patches, 2]: kind and colour of the thing that covers most of each patch, from 1; 0 is none."""
    side = SIZE // PATCH
    most = np.full((side, side), LEAST_COVER)
    labels = np.zeros((side, side, 2), dtype=np.int64)
    for group in scene.groups:
        label = (1 + list(KINDS).index(group.kind), 1 + list(COLOURS).index(group.colour))
        for thing in group.things:
            rows, columns, cover = coverage(group.kind, thing)
            pixels = np.zeros((SIZE, SIZE))
            pixels[rows, columns] = cover
            share = pixels.reshape(side, PATCH, side, PATCH).mean(axis=(1, 3))
            labels[share > most] = label
            most = np.maximum(most, share)
    return labels.reshape(-1, 2)
