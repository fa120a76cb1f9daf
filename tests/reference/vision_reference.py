"""The reference on a LLaVA with its images: `transformers_reference` where tokens may stand for pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from reference_results import Result
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText
from transformers_reference import Reference
from vision_definition import Images

Intervention = Mapping[str, Any]


def generate(
    model_dir: str | Path,
    prompt_token_ids: Sequence[int],
    pictures: Sequence[bytes],
    interventions: Sequence[Intervention] = (),
    forced_tokens: Sequence[int] | None = None,
    max_tokens: int = 16,
) -> Result:
    """As `transformers_reference.generate`. The prompt has one image token for each visual token; pictures
    are files, in the order of their tokens."""
    reference = VisionReference(str(model_dir), pictures)
    return reference.generate(prompt_token_ids, interventions, max_tokens, forced_tokens)


@lru_cache(maxsize=4)
def load(model_dir: str) -> tuple[Any, Any]:
    """Model and image processor of a directory, read once."""
    model = AutoModelForImageTextToText.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    return model, AutoImageProcessor.from_pretrained(model_dir)


class VisionReference(Reference):
    """One LLaVA, and the pictures of one request."""

    def __init__(self, model_dir: str, pictures: Sequence[bytes]) -> None:
        model, processor = load(model_dir)
        super().__init__(model)
        opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
        self.pixels = processor(opened, return_tensors="pt")["pixel_values"] if opened else None

    @property
    def decoder(self) -> Any:
        return self.model.model.language_model

    def inputs(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        seen = self.pixels is not None and bool(self.images(tokens).visual.any())
        return super().inputs(tokens) | ({"pixel_values": self.pixels} if seen else {})

    def images(self, tokens: Sequence[int]) -> Images:
        found = Images.of(torch.tensor(list(tokens)) == self.model.config.image_token_index)
        return replace(found, seen=self.class_attention)

    @cached_property
    def class_attention(self) -> list[tuple[Tensor, Tensor]]:
        """As `Images.seen`. Patches come after the class token."""
        if self.pixels is None:
            return []
        tower = self.model.model.vision_tower
        with torch.no_grad():
            weights = tower(self.pixels, output_attentions=True).attentions
        first, later = (weights[layer][:, :, 0, 1:].sum(dim=1) for layer in (0, -2))
        return list(zip(first, later, strict=True))
