"""What a full report says of images: how much of the attention of the prompt's last row they have."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heed_interventions.views import ImageSpan, ModelView, keys_of_images
from heed_kernels.inspection import Inspection
from heed_server.attention.measures import vas

_DIGITS = 6
_IMAGE, _BEFORE = 0, 1
"""Places of the keys of all images, and of those before the first one."""


def on_images(images: Sequence[ImageSpan], length: int, model: ModelView) -> Inspection:
    """What is measured of a prompt of `length` tokens with `images`, one or more."""
    keys, before = keys_of_images(images)
    return Inspection(
        length=length,
        layers=tuple(range(model.layers)),
        heads=tuple(range(model.query_heads)),
        rows=(length - 1,),
        key_sets=(keys, before) if before else (keys,),
        response=length,
        quantities=("mass",),
    )


def of_all_ranks(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two tensor-parallel ranks' masses as one (`InspectedRequests.on_images`): each has heads of its own."""
    masses = {layer: [*heads, *other["masses"][layer]] for layer, heads in one["masses"].items()}
    return {"masses": masses}


def image_counts(measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """The report's part on images: by layer the mean mass on them, and VAS; empty where nothing was measured."""
    found = (measured or {}).get("on_images")
    if found is None:
        return {}
    masses = np.array(list(found["masses"].values()))  # [layers, heads, sets of keys]
    before = masses[..., _BEFORE, None] if masses.shape[-1] > _BEFORE else None
    _, mean = vas(masses[..., _IMAGE, None], before)
    return {
        "image_mass": {
            layer: round(float(mass), _DIGITS)
            for layer, mass in zip(found["masses"], masses[..., _IMAGE].mean(axis=1), strict=True)
        },
        "vas": None if mean is None else round(mean, _DIGITS),
    }
