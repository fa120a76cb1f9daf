"""What of the loaded model Heed can edit: read off the worker's own attention layers and configuration."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding, RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.llama3_rope import Llama3RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import (
    YaRNScalingRotaryEmbedding,
)
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionType

from heed_kernels.rope import Rope
from heed_server.engine.model.image_tower import patches_of, tower_obstacle
from heed_server.engine.model.layer_inputs import inputs_obstacle


@dataclass(frozen=True)
class ModelSupport:
    """Head counts are the whole model's; `local` ones are this tensor-parallel rank's.

    unsupported: why edited requests are refused on this model or set-up; None when they are not.
    rotary: whether every layer's rotary embedding can be turned back (rolling positions).
    backend: what carries out edits on this device ("cpu", "cuda"); None where nothing does.
    kv_blocks, block_size: the KV cache of an engine; 0 where it is not known.
    eviction_obstacle: why requests that evict are refused, where others are not; None when they are not.
    longest_step: tokens that one step holds; None where that is not known.
    hidden_size: of the language model's hidden states.
    model_type: the language model's, as transformers names it.
    inputs_obstacle: why requests that look at hidden states are refused; None when they are not.
    patches: of an image, where the image encoder has a class token and each patch is a token; else None.
    tower_obstacle: why requests that look at that class token are refused; None when they are not.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    head_start: int
    local_query_heads: int
    max_length: int
    unsupported: str | None
    rotary: bool
    backend: str | None = None
    kv_blocks: int = 0
    block_size: int = 0
    eviction_obstacle: str | None = None
    longest_step: int | None = None
    hidden_size: int = 0
    model_type: str = ""
    inputs_obstacle: str | None = None
    patches: int | None = None
    tower_obstacle: str | None = None


def eviction_obstacle(config: VllmConfig) -> str | None:
    """Why requests cannot evict here although they can be edited; None where they can."""
    ranks = config.parallel_config.tensor_parallel_size
    kv_heads = config.model_config.get_total_num_kv_heads()
    if kv_heads % ranks:
        return f"{kv_heads} KV heads cannot be divided among {ranks} tensor-parallel ranks"
    return None


def attention_layers(config: VllmConfig) -> dict[int, Attention]:
    """Attention layers by layer id; those without an id of their own get negative keys."""
    found: dict[int, Attention] = {}
    for name, layer in get_layers_from_vllm_config(config, Attention).items():
        index = layer_id(name)
        found[index if index is not None and index not in found else -1 - len(found)] = layer
    return found


def layer_id(name: str) -> int | None:
    """The one number in a module's name, or None when there is none or several."""
    try:
        return int(extract_layer_index(name))
    except (AssertionError, ValueError):
        return None


def model_support(
    config: VllmConfig,
    model: nn.Module,
    backend: str | None,
    obstacles: Iterable[str] = (),
) -> ModelSupport:
    """Inspect a loaded model.

    backend: what carries out edits on this device; None when there is nothing.
    obstacles: further reasons to refuse edited requests, which this device alone has.
    """
    layers = attention_layers(config)
    parallel = config.parallel_config
    first = next(iter(layers.values()), None)
    local = first.num_heads if first is not None else 0
    rank = _tensor_parallel_rank()
    return ModelSupport(
        layers=len(layers),
        query_heads=local * parallel.tensor_parallel_size,
        kv_heads=config.model_config.get_total_num_kv_heads(),
        head_dim=first.head_size if first is not None else 0,
        head_start=local * rank,
        local_query_heads=local,
        max_length=config.model_config.max_model_len,
        unsupported=_first(chain(_obstacles(config, layers, backend), obstacles)),
        rotary=bool(layers) and set(rope_by_layer(model)) >= set(layers),
        backend=backend,
        eviction_obstacle=eviction_obstacle(config),
        hidden_size=config.model_config.get_hidden_size(),
        model_type=config.model_config.hf_text_config.model_type,
        inputs_obstacle=inputs_obstacle(config, model, layers, uncompiled_steps=backend == "cuda"),
        patches=patches_of(model),
        tower_obstacle=tower_obstacle(config, model),
    )


def rope_by_layer(model: nn.Module) -> dict[int, Rope]:
    """Rotary embeddings that turn by a fixed frequency per pair of dimensions, by layer id."""
    ropes: dict[int, Rope] = {}
    known: dict[int, Rope | None] = {}
    # Layers share one module, which named_modules lists once by default.
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, RotaryEmbeddingBase):
            continue
        if id(module) not in known:
            known[id(module)] = rope_of(module)
        rope, index = known[id(module)], layer_id(name)
        if rope is not None and index is not None:
            ropes[index] = rope
    return ropes


def rope_of(module: RotaryEmbeddingBase) -> Rope | None:
    """The frequencies of a rotary module, or None where its angle is not frequency times position."""
    frequencies = frequencies_of(module)
    if frequencies is None:
        return None
    frequencies = frequencies.to(device="cpu", dtype=torch.float64)
    return Rope(inv_freq=frequencies.numpy(), interleaved=not module.is_neox_style)


def frequencies_of(module: RotaryEmbeddingBase) -> torch.Tensor | None:
    """The module's own frequencies, or None where they are not the same at every length."""
    frequencies: torch.Tensor | None = None
    if type(module) in (RotaryEmbedding, Llama3RotaryEmbedding):
        frequencies = module._compute_inv_freq(module.base)
    elif type(module) is YaRNScalingRotaryEmbedding:
        frequencies = module._compute_inv_freq(module.scaling_factor)
    return frequencies


def _obstacles(
    config: VllmConfig, layers: dict[int, Attention], backend: str | None
) -> Iterable[str]:
    parallel, cache = config.parallel_config, config.cache_config
    if backend is None:
        yield "Heed has no edited attention for this device yet"
    if config.model_config.is_encoder_decoder:
        yield "the model attends to an encoder of its own (cross-attention)"
    if config.model_config.is_mm_prefix_lm:
        yield "the model attends to images in both directions"
    if config.model_config.use_mla:
        yield "the model uses multi-head latent attention (MLA)"
    others = [
        layer
        for layer in get_layers_from_vllm_config(config, AttentionLayerBase).values()
        if not isinstance(layer, Attention)
    ]
    if others:
        yield f"the model has {type(others[0]).__name__} layers besides standard attention"
    if sorted(layers) != list(range(len(layers))) or not layers:
        yield "the model's attention layers are not numbered 0 to L - 1 in one stack"
    if parallel.pipeline_parallel_size > 1:
        yield "the server runs with pipeline parallelism"
    if parallel.decode_context_parallel_size > 1:
        yield "the server runs with decode context parallelism"
    if config.speculative_config is not None:
        yield "the server runs with speculative decoding"
    if config.kv_transfer_config is not None:
        yield "the server runs with a KV connector"
    if cache.cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
        yield f"the KV cache is quantised ({cache.cache_dtype})"
    heads = {(layer.num_heads, layer.num_kv_heads, layer.head_size) for layer in layers.values()}
    if len(heads) > 1:
        yield "the model's layers differ in their heads"
    for index, layer in sorted(layers.items()):
        reason = _layer_obstacle(layer)
        if reason is not None:
            yield f"layer {index} {reason}"


def _layer_obstacle(layer: Attention) -> str | None:
    # Subclasses change what a row sees, or hand the kernel batches of their own making.
    if type(layer) is not Attention:
        return f"is {type(layer).__name__}"
    impl: Any = layer.impl
    if impl.attn_type != AttentionType.DECODER:
        return "is not decoder self-attention"
    if getattr(impl, "sliding_window", -1) not in (-1, None, (-1, -1)):
        return "has a sliding window"
    if getattr(impl, "logits_soft_cap", 0):
        return "caps its logits"
    if getattr(impl, "alibi_slopes", None) is not None:
        return "uses ALiBi"
    if getattr(impl, "sinks", None) is not None:
        return "has learned sink logits"
    if getattr(impl, "kv_sharing_target_layer_name", None) is not None:
        return "shares the KV cache of another layer"
    return None


def _tensor_parallel_rank() -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    rank: int = get_tensor_model_parallel_rank()
    return rank


def _first(reasons: Iterable[str]) -> str | None:
    return next(iter(reasons), None)
