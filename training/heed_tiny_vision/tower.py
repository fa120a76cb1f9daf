"""The vision tower for training: a CLIP encoder whose parameters carry Hugging Face's names.

The feature layer is the last but one, as `vision_feature_layer` -2 has it in LLaVA. The language
model never sees the last layer nor the class token; both are trained through `Aid`, so that the
class token's attention means something (PAINT reads it).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .pictures import PATCH
from .scenes import COLOURS, SIZE
from .shapes import KINDS


@dataclass(frozen=True)
class TowerShape:
    """Sizes of the tower."""

    image: int = SIZE
    patch: int = PATCH
    layers: int = 6
    width: int = 128
    heads: int = 4
    mlp: int = 256
    norm_eps: float = 1e-5

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


class TowerAttention(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(shape.width, shape.width) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, width = x.shape
        q, k, v = (
            project(x).view(batch, rows, self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        mixed = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, rows, width)
        result: Tensor = self.out_proj(mixed)
        return result


class TowerMlp(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.width, shape.mlp)
        self.fc2 = nn.Linear(shape.mlp, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        result: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))  # CLIP's quick_gelu
        return result


class TowerLayer(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.self_attn = TowerAttention(shape)
        self.mlp = TowerMlp(shape)
        self.layer_norm1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.layer_norm2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        result: Tensor = x + self.mlp(self.layer_norm2(x))
        return result


class Embeddings(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(0.02 * torch.randn(shape.width))
        self.patch_embedding = nn.Conv2d(3, shape.width, shape.patch, shape.patch, bias=False)
        self.position_embedding = nn.Embedding(shape.patches + 1, shape.width)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        result: Tensor = torch.cat((first, patches), dim=1) + self.position_embedding.weight
        return result


class Encoder(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TowerLayer(shape) for _ in range(shape.layers)])


class Tower(nn.Module):
    """A CLIP vision transformer. Row 0 is the class token, then the patches in reading order."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.pre_layrnorm = nn.LayerNorm(shape.width, eps=shape.norm_eps)  # CLIP's spelling
        self.encoder = Encoder(shape)
        self.post_layernorm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: [count, 3, SIZE, SIZE], normalised.

        Returns the patches at the feature layer [count, patches, width], and the class token after
        the last layer [count, width].
        """
        x = self.pre_layrnorm(self.embeddings(images))
        for layer in self.encoder.layers[:-1]:
            x = layer(x)
        last = self.encoder.layers[-1](x)
        return x[:, 1:], self.post_layernorm(last[:, 0])


class Aid(nn.Module):
    """Linear readers of the tower, for training alone: what is on each patch, what is there."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.patch_kind = nn.Linear(shape.width, 1 + len(KINDS))
        self.patch_colour = nn.Linear(shape.width, 1 + len(COLOURS))
        self.scene_kinds = nn.Linear(shape.width, len(KINDS))

    def forward(self, patches: Tensor, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [count, patches, 1 + kinds], [count, patches, 1 + colours], [count, kinds]."""
        return self.patch_kind(patches), self.patch_colour(patches), self.scene_kinds(whole)
