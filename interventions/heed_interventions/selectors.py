"""Layers, heads and rows: how a request writes them, and what they are on a given model."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.config import JsonDict

from heed_interventions.errors import InterventionError, join_path, quote
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, HeadSet, Rows

_ID_BOUND = 10_000
_MOST_IDS = 1024

LayerId = Annotated[int, Field(ge=-_ID_BOUND, lt=_ID_BOUND)]
HeadId = Annotated[int, Field(ge=0, lt=_ID_BOUND)]
LayerKey = Annotated[str, Field(pattern=r"^-?[0-9]{1,4}$")]
_HeadIds = Annotated[list[HeadId], Field(min_length=1, max_length=_MOST_IDS)]


def shape(value: Any) -> str | None:
    """Tag of the form in which a selector is written; None for none of them.

    Tags stand in angle brackets so that they can be told from the parts of a path.
    """
    if isinstance(value, list):
        return "<list>"
    if isinstance(value, dict):
        return "<object>"
    return "<text>" if value == "all" else None


Layers = Annotated[
    Annotated[Literal["all"], Tag("<text>")]
    | Annotated[list[LayerId], Field(min_length=1, max_length=_MOST_IDS), Tag("<list>")],
    Discriminator(
        shape,
        custom_error_type="wrong_type",
        custom_error_message='must be "all" or a list of layer ids',
    ),
    Field(description='"all" or layer ids, 0-based; negative ids count from the last layer.'),
]


def _without_default(schema: JsonDict) -> None:
    del schema["default"]


def own_layers(which: str) -> Any:
    """The field `layers` of a method that has `default_layers` of its own; `which` they are, in words."""
    return Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer. '
        f"{which} where it is left out.",
        json_schema_extra=_without_default,
    )


Heads = Annotated[
    Annotated[Literal["all"], Tag("<text>")]
    | Annotated[_HeadIds, Tag("<list>")]
    | Annotated[
        dict[LayerKey, _HeadIds], Field(min_length=1, max_length=_MOST_IDS), Tag("<object>")
    ],
    Discriminator(
        shape,
        custom_error_type="wrong_type",
        custom_error_message='must be "all", a list of head ids, or an object {"layer": [heads]}',
    ),
    Field(
        description='"all", query-head ids used in every selected layer, or {"layer": [heads]}, '
        "which takes the place of `layers`."
    ),
]
RowScope = Annotated[
    Literal["all", "prompt", "generated", "last_and_generated", "after_image"],
    Field(description="Which query rows are edited, by absolute position."),
]


def as_written(number: float) -> Fraction:
    """The decimal fraction that a request means by `number`: 0.29 of 100 is 29, and a little less in binary."""
    return Fraction(str(number))


def share_of(fraction: float, count: int) -> int:
    """So many of `count`, rounded down."""
    return math.floor(as_written(fraction) * count)


def select_layers(
    layers: Literal["all"] | list[int], default: Sequence[int] | None, model: ModelView, path: str
) -> list[int]:
    """Layer ids, each in [0, model.layers), ascending.

    default: the method's own layers where the request names none; clipped to the model.
    path: path of the intervention. Raises `InterventionError` (reason `layer`).
    """
    if default is not None:
        clipped = [layer for layer in default if 0 <= layer < model.layers]
        if not clipped:
            raise InterventionError(
                f"none of the method's own layers is one of this model's {model.layers}: say which "
                "`layers`",
                join_path(path, "layers"),
                reason="layer",
            )
        return clipped
    if layers == "all":
        return list(range(model.layers))
    return sorted(
        {layer_of(layer, model, join_path(path, "layers", i)) for i, layer in enumerate(layers)}
    )


def select_heads(
    layers: list[int],
    heads: Literal["all"] | list[int] | dict[str, list[int]],
    model: ModelView,
    path: str,
) -> HeadSet:
    """The (layer, head) pairs. `layers` is not looked at where `heads` is an object.

    Raises `InterventionError` (reason `layer` or `head`) with the path of the first bad id.
    """
    path = join_path(path, "heads")
    masks = [0] * model.layers
    if isinstance(heads, dict):
        for key, ids in heads.items():
            layer = layer_of(int(key), model, join_path(path, key))
            masks[layer] |= _mask(ids, model, join_path(path, key))
    else:
        everyone = (1 << model.query_heads) - 1
        mask = everyone if heads == "all" else _mask(heads, model, path)
        for layer in layers:
            masks[layer] = mask
    return HeadSet(tuple(masks))


def every_head(model: ModelView) -> HeadSet:
    """All pairs of the model."""
    return HeadSet(((1 << model.query_heads) - 1,) * model.layers)


def select_rows(scope: str, request: RequestView) -> Rows:
    """The rows of a `RowScope`. Raises `InterventionError` (`vision`) where there is no image."""
    prompt = request.prompt.length
    if scope == "after_image":
        return Rows(request.image_end("rows", '"after_image"'), OPEN)
    return {
        "all": Rows(0, OPEN),
        "prompt": Rows(0, prompt),
        "generated": Rows(prompt, OPEN),
        "last_and_generated": Rows(prompt - 1, OPEN),
    }[scope]


def first_row_by_length(scope: str, prompt_length: int) -> int | None:
    """First row whose place in the scope depends on the prompt's length; None where none does."""
    if scope in ("prompt", "generated"):
        return prompt_length
    return prompt_length - 1 if scope == "last_and_generated" else None


def layer_of(layer: int, model: ModelView, path: str) -> int:
    """The layer's id counted from 0. Raises `InterventionError` (reason `layer`) with `path`."""
    if not -model.layers <= layer < model.layers:
        raise InterventionError(
            f"layer {quote(layer)} does not exist: this model has layers 0 to {model.layers - 1} "
            f"(or -{model.layers} to -1, from the last)",
            path,
            reason="layer",
        )
    return layer % model.layers


def _mask(ids: Iterable[int], model: ModelView, path: str) -> int:
    mask = 0
    for index, head in enumerate(ids):
        if not 0 <= head < model.query_heads:
            raise InterventionError(
                f"head {quote(head)} does not exist: this model has query heads 0 to "
                f"{model.query_heads - 1}",
                join_path(path, index),
                reason="head",
            )
        mask |= 1 << head
    return mask
