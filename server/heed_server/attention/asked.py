"""From a body, a model and a rendered prompt to what the workers are to measure, or to a refusal."""

from collections.abc import Sequence
from dataclasses import dataclass

from heed_interventions.errors import InterventionError, join_path
from heed_interventions.selectors import select_heads, select_layers
from heed_interventions.spans import Range, find_spans, union
from heed_interventions.views import ModelView, PromptView, RequestView, keys_of_images
from heed_kernels.inspection import Inspection, Quantity
from heed_server.api.errors import RefusedError, refused
from heed_server.attention.body import AttentionBody, Encoding, Measure

MOST_VALUES: dict[Encoding, int] = {"json": 1 << 18, "base64": 1 << 22, "npz": 1 << 22}
"""Most numbers that one answer is made of: JSON is written by the process that serves everybody."""

_QUANTITIES: dict[Measure, tuple[Quantity, ...]] = {
    "attention": ("weights",),
    "column_mean": ("columns",),
    "sink": ("columns",),
    "mass": ("mass",),
    "entropy": ("entropy",),
    "dormancy": ("columns", "dormancy"),
    "waad": ("distance",),
    "fai": ("distance", "ahead"),
    "q_similarity": ("queries",),
    "vas": ("mass",),
    "vhd": ("apart",),
}
_OF_CONTINUATIONS: tuple[Measure, ...] = ("waad", "fai")
_OF_IMAGES: tuple[Measure, ...] = ("vas", "vhd")


@dataclass(frozen=True)
class Asked:
    """What is measured, and where in the mass's last axis things stand.

    spans: token ranges [start, end), behind position 0. image, system: places of the keys of all
    images and of those before the first one, None where there are none.
    """

    inspection: Inspection
    spans: tuple[Range, ...]
    image: int | None = None
    system: int | None = None


def check_body(body: AttentionBody, model: ModelView) -> None:
    """What can be said before the prompt is rendered.

    Raises:
        RefusedError: the model cannot be looked into, or a measure needs something
            that is not there.
    """
    if model.unsupported is not None:
        raise RefusedError(model.unsupported, None)
    for index, measure in enumerate(body.include):
        path = f"include.{index}"
        if measure in _OF_IMAGES and not model.vision:
            raise RefusedError(f"{measure} needs an image, and this model takes text only", path)
        if measure == "vhd" and model.companion_obstacle is not None:
            raise RefusedError(f"vhd cannot be had: {model.companion_obstacle}", path)
        if measure in _OF_CONTINUATIONS and body.continuation is None:
            raise RefusedError(f"{measure} is of a `continuation`, and there is none", path)


def asked_for(body: AttentionBody, model: ModelView, view: PromptView, prompt: int) -> Asked:
    """What a checked body comes to on a prompt.

    view: of prompt and continuation together; prompt: tokens of the prompt alone.

    Raises:
        RefusedError: a layer, head, row or span that is not there, or too many numbers.
    """
    try:
        layers = select_layers(body.layers, None, model, "")
        on = select_heads(layers, body.heads, model, "")
        spans = find_spans(body.spans, RequestView(model, view, "", 0)) if body.spans else []
    except InterventionError as error:
        raise refused(error) from error
    rows = _rows(body, view.length)
    if "q_similarity" in body.include and len(rows) < 2:
        raise RefusedError("q_similarity compares rows: name at least two", "rows")
    image, system = keys_of_images(view.images)
    _check_images(body, image, view.length)
    key_sets = [((0, 1),), *(tuple(union([span])) for span in spans), image, system]
    quantities = {name for measure in body.include for name in _QUANTITIES[measure]}
    inspection = Inspection(
        length=view.length,
        layers=tuple(layer for layer, mask in enumerate(on.masks) if mask),
        heads=tuple(sorted({h for layer in range(model.layers) for h in on.heads(layer)})),
        rows=tuple(rows),
        key_sets=tuple(keys for keys in key_sets if keys),
        response=prompt,
        quantities=tuple(sorted(quantities)),
        without=image if "vhd" in body.include else (),
    )
    most = MOST_VALUES[body.encoding]
    if inspection.values > most:
        hint = ', or take "encoding": "npz"' if body.encoding == "json" else ""
        raise RefusedError(
            f"the answer would be made of {inspection.values} numbers, and {most} are the most with "
            f'"encoding": "{body.encoding}": name fewer rows, layers, heads or measures{hint}',
            "include",
        )
    first = 1 + len(spans)
    return Asked(
        inspection,
        tuple(spans),
        image=first if image else None,
        system=first + 1 if system else None,
    )


def _check_images(body: AttentionBody, image: tuple[Range, ...], length: int) -> None:
    for index, measure in enumerate(body.include):
        path = f"include.{index}"
        if measure in _OF_IMAGES and not image:
            raise RefusedError(f"{measure} needs an image, and this prompt has none", path)
        if measure == "vhd" and sum(end - start for start, end in image) == length:
            raise RefusedError(
                "vhd compares with the prompt without its image, which is empty here", path
            )


def _rows(body: AttentionBody, length: int) -> Sequence[int]:
    """Absolute, ascending."""
    if body.rows == "all":
        return range(length)
    for index, row in enumerate(body.rows):
        if not -length <= row < length:
            raise RefusedError(
                f"row {row} does not exist: there are rows 0 to {length - 1} (or -{length} to -1, "
                "from the end)",
                join_path("rows", index),
            )
    return sorted({row % length for row in body.rows})
