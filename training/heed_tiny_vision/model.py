"""LLaVA for training: CLIP tower, two-layer projector, and heed-tiny's Llama."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from heed_tiny.model import Llama, Shape

from .tower import Aid, Tower, TowerShape

NO_IMAGE = -1
MEAN, DEVIATION = 0.5, 0.25  # of a channel, in [0, 1]; the processor's configuration says the same


@dataclass(frozen=True)
class VisionShape:
    """Sizes of the whole model."""

    text: Shape = field(default_factory=Shape)
    tower: TowerShape = field(default_factory=TowerShape)


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """[count, SIZE, SIZE, 3] of 0 to 255 to float32 [count, 3, SIZE, SIZE], as the processor does."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / DEVIATION


class Projector(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(shape.tower.width, shape.text.width)
        self.linear_2 = nn.Linear(shape.text.width, shape.text.width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear_2(functional.gelu(self.linear_1(x)))
        return result


@dataclass(frozen=True)
class Seen:
    """What a forward pass gives. logits: [rows, length, vocabulary]; the rest as `Aid` gives it."""

    logits: Tensor
    patch_kind: Tensor
    patch_colour: Tensor
    scene_kinds: Tensor


class Llava(nn.Module):
    """Image features take the place of the embeddings of the image tokens."""

    def __init__(self, shape: VisionShape | None = None) -> None:
        super().__init__()
        self.shape = shape or VisionShape()
        self.language_model = Llama(self.shape.text)
        self.vision_tower = Tower(self.shape.tower)
        self.multi_modal_projector = Projector(self.shape)
        self.aid = Aid(self.shape.tower)

    def forward(self, images: Tensor, tokens: Tensor, patches: Tensor) -> Seen:
        """images: [count, 3, SIZE, SIZE]. tokens: [rows, length].

        patches: [rows, length], for every token the patch it stands for, counted over all images
        of the batch, or NO_IMAGE.
        """
        features, whole = self.vision_tower(images)
        projected = self.multi_modal_projector(features).flatten(0, 1)
        embedded = self.language_model.model.embed_tokens(tokens)
        given = projected[patches.clamp(min=0)].to(embedded.dtype)
        x = torch.where((patches == NO_IMAGE)[..., None], embedded, given)
        logits, _ = self.language_model.decode(x)
        return Seen(logits, *self.aid(features, whole))
