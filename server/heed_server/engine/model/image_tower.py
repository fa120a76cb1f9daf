"""Image encoder seam: what the class token of a CLIP tower attends to, for requests that ask for it (PAINT).

The tower runs once more for them, on the pixels that came with the request: its outputs and vLLM's cache of
them stay as they are, and images of plain requests cost nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from vllm.config import VllmConfig

from heed_kernels.beside.patches import ClassAttention
from heed_kernels.errors import EditError

IMAGES_KEPT = 256
"""Images of which the class token's attention is kept; the one that was asked for longest ago goes first."""

_LLAVA = "vllm.model_executor.models.llava.LlavaForConditionalGeneration"
_CLIP = "vllm.model_executor.models.clip.CLIPVisionModel"
"""By name, because a server of another model has not loaded these, nor all that comes with them."""

_NO_CLASS_TOKEN = (
    "there is no class token in the model's image encoder, or its patches are not tokens of the "
    "prompt, one each"
)


def patches_of(model: nn.Module) -> int | None:
    """Patches of an image in a CLIP tower, each of which is one token of the prompt; None for others."""
    tower: Any = getattr(model, "vision_tower", None)
    if (_name(model), _name(tower)) != (_LLAVA, _CLIP):
        return None
    config = tower.vision_model.config
    return int(config.image_size // config.patch_size) ** 2


def _name(module: Any) -> str:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def tower_obstacle(config: VllmConfig, model: nn.Module) -> str | None:
    """Why the class token's attention cannot be read here; None where it can."""
    if patches_of(model) is None:
        return _NO_CLASS_TOKEN
    llava: Any = model
    transformer = llava.vision_tower.vision_model
    if llava.config.vision_feature_select_strategy != "default":
        return "the class token is itself a token of the prompt in this model"
    if len(transformer.encoder.layers) < transformer.config.num_hidden_layers - 1:
        return "the image encoder's last layer but one is not in use in this model"
    lora = config.lora_config
    if lora is not None and lora.enable_tower_connector_lora:
        return "the image encoder may be adapted by each request's LoRA adapter"
    return None


class ClassToken:
    """Of a tower without an obstacle.

    gather: from [local_heads, ...] of this tensor-parallel rank to all heads. Every rank has to come
    with the same images in the same order.
    """

    def __init__(self, model: nn.Module, gather: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self._tower: Any = model.vision_tower
        self._gather = gather
        self._known: OrderedDict[str, ClassAttention] = OrderedDict()

    def attention(self, features: Sequence[Any]) -> list[ClassAttention]:
        """Of each image.

        features: vLLM's `MultiModalFeatureSpec`s of a request, in the order of their positions.

        Raises:
            EditError: an image came without its pixels.
        """
        return [self._of(feature) for feature in features]

    def _of(self, feature: Any) -> ClassAttention:
        name = feature.identifier
        if name not in self._known:
            pixels = feature.data.get("pixel_values") if feature.data is not None else None
            if pixels is None:
                raise EditError("an image came without its pixels")
            self._known[name] = self._measured(pixels.data)
        self._known.move_to_end(name)
        while len(self._known) > IMAGES_KEPT:
            self._known.popitem(last=False)
        return self._known[name]

    @torch.inference_mode()
    def _measured(self, pixels: torch.Tensor) -> ClassAttention:
        """pixels: [3, height, width]."""
        transformer = self._tower.vision_model
        layers, found = transformer.encoder.layers, dict[int, NDArray[np.float32]]()
        hooks = []
        for layer in {0, transformer.config.num_hidden_layers - 2}:
            seen = partial(self._seen, found, layer)
            hooks.append(layers[layer].self_attn.register_forward_pre_hook(seen, with_kwargs=True))
        try:
            self._tower(pixels[None].to(self._tower.device), feature_select_strategy="default")
        finally:
            for hook in hooks:
                hook.remove()
        return ClassAttention(found[0], found[transformer.config.num_hidden_layers - 2])

    def _seen(
        self,
        found: dict[int, NDArray[np.float32]],
        layer: int,
        module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        projected, _ = module.qkv_proj(hidden)
        query, key, _ = (
            part[0].float().unflatten(-1, (-1, module.head_dim))
            for part in projected.chunk(3, dim=-1)
        )  # [1 + patches, local_heads, head_dim]
        logits = torch.einsum("hd,khd->hk", query[0], key) * module.scale
        weights = logits.softmax(dim=1)[:, 1:].cpu().numpy()
        # With --mm-encoder-tp-mode data every rank has all of the tower.
        heads = weights if module.tp_size == 1 else self._gather(weights)
        found[layer] = heads.sum(axis=0)
