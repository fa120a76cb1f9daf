"""Multi-modal input seam: whether the served model takes images, and where they lie in a rendered prompt."""

from collections.abc import Mapping
from typing import Any

from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY

from heed_interventions.views import ImageSpan

_MODALITIES = ("image", "video")
"""What counts as an image: frames of a video are seen in the same way."""


def takes_images(config: ModelConfig) -> bool:
    """Whether requests may carry images: the model can, and no limit of the server's is zero."""
    limits = config.multimodal_config
    if limits is None or not config.is_multimodal_model:
        return False
    try:
        supported = MULTIMODAL_REGISTRY.get_processing_info(config).supported_mm_limits
    except ValueError:  # a model without a processor of its own runs on text
        return False
    return any(
        modality in supported and limits.get_limit_per_prompt(modality) > 0
        for modality in _MODALITIES
    )


def image_spans(prompt: Mapping[str, Any]) -> tuple[ImageSpan, ...]:
    """The images of one rendered prompt, in order of position; those without a visual token are left out.

    Visual are the tokens that take an embedding from the encoder (`PlaceholderRange.is_embed`), all of
    the placeholder where that is not said.
    """
    placeholders = prompt.get("mm_placeholders") or {}
    found = sorted(
        (place for modality in _MODALITIES for place in placeholders.get(modality, ())),
        key=lambda place: place.offset,
    )
    return tuple(
        ImageSpan(
            place.offset,
            place.offset + place.length,
            # vLLM's ends are the last positions inside.
            tuple((start, last + 1) for start, last in place.extract_embeds_range()),
        )
        for place in found
        if place.length and place.get_num_embeds()
    )
