from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.model_executor.layers.attention import (
    Attention,
    ChunkedLocalAttention,
    CrossAttention,
)
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.dynamic_ntk_scaling_rope import (
    DynamicNTKScalingRotaryEmbedding,
)
from vllm.v1.attention.backend import AttentionType

from heed_server.engine.model import model_support
from heed_server.engine.model.model_support import layer_id, rope_by_layer, rope_of

PLAIN_IMPL = {
    "attn_type": AttentionType.DECODER,
    "sliding_window": -1,
    "logits_soft_cap": 0,
    "alibi_slopes": None,
    "sinks": None,
    "kv_sharing_target_layer_name": None,
}


def layer(heads: int = 4, kind: type[Attention] = Attention, **impl: Any) -> Any:
    """A real layer object without the weights and configuration that its constructor wants."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.num_heads, made.num_kv_heads, made.head_size = heads, 2, 32
    made.impl = SimpleNamespace(**(PLAIN_IMPL | impl))
    return made


def obstacle(
    layers: dict[int, Any] | None = None, backend: str | None = "cpu", **changed: Any
) -> str | None:
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            use_mla=changed.pop("use_mla", False),
            is_mm_prefix_lm=changed.pop("both_ways", False),
            is_multimodal_model=False,
            is_encoder_decoder=changed.pop("encoder", False),
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=changed.pop("pipeline", 1),
            decode_context_parallel_size=changed.pop("context", 1),
        ),
        cache_config=SimpleNamespace(cache_dtype=changed.pop("cache_dtype", "auto")),
        compilation_config=SimpleNamespace(static_forward_context=changed.pop("context_of", {})),
        speculative_config=changed.pop("speculative", None),
        kv_transfer_config=changed.pop("connector", None),
    )
    assert not changed
    found = layers if layers is not None else {0: layer(), 1: layer()}
    reasons: list[str] = list(model_support._obstacles(config, found, backend))  # type: ignore[arg-type]
    return reasons[0] if reasons else None


def test_standard_decoder_attention_can_be_edited() -> None:
    assert obstacle() is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backend": None}, "device"),
        ({"use_mla": True}, "MLA"),
        ({"both_ways": True}, "both directions"),
        ({"encoder": True}, "cross-attention"),
        ({"layers": {0: layer(kind=CrossAttention)}}, "CrossAttention"),
        ({"layers": {0: layer(kind=ChunkedLocalAttention)}}, "ChunkedLocalAttention"),
        ({"context_of": {"layers.2": object.__new__(MambaMixer2)}}, "MambaMixer2 layers besides"),
        ({"pipeline": 2}, "pipeline"),
        ({"context": 2}, "context parallelism"),
        ({"speculative": object()}, "speculative"),
        ({"connector": object()}, "connector"),
        ({"cache_dtype": "fp8"}, "quantised"),
        ({"layers": {}}, "layers"),
        ({"layers": {0: layer(), 2: layer()}}, "numbered"),
        ({"layers": {0: layer(), 1: layer(heads=8)}}, "differ"),
        ({"layers": {0: layer(), 1: layer(sliding_window=128)}}, "layer 1 has a sliding window"),
        ({"layers": {0: layer(logits_soft_cap=50.0)}}, "layer 0 caps"),
        ({"layers": {0: layer(alibi_slopes=[1.0])}}, "ALiBi"),
        ({"layers": {0: layer(sinks=object())}}, "sink"),
        ({"layers": {0: layer(kv_sharing_target_layer_name="x")}}, "shares"),
        ({"layers": {0: layer(attn_type=AttentionType.ENCODER_DECODER)}}, "decoder"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_its_reason(
    changed: dict[str, Any], words: str
) -> None:
    reason = obstacle(**changed)
    assert reason is not None and words in reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [("model.layers.3.self_attn.attn", 3), ("visual.rotary", None), ("a.1.b.2.c", None)],
)
def test_a_modules_layer_is_the_one_number_in_its_name(name: str, expected: int | None) -> None:
    assert layer_id(name) == expected


def rotary(cls: type = RotaryEmbedding, **more: Any) -> Any:
    return cls(
        head_size=32,
        rotary_dim=32,
        max_position_embeddings=64,
        base=10000.0,
        is_neox_style=True,
        dtype=torch.float32,
        **more,
    )


@pytest.mark.usefixtures("default_vllm_config")
def test_rotary_frequencies_are_those_of_the_models_own_table() -> None:
    module = rotary()
    rope = rope_of(module)
    assert rope is not None and not rope.interleaved
    angles = np.arange(64)[:, None] * np.asarray(rope.inv_freq)[None, :]
    cos, sin = module.cos_sin_cache.numpy().reshape(64, 2, 16).transpose(1, 0, 2)
    np.testing.assert_allclose(np.cos(angles), cos, atol=1e-5)
    np.testing.assert_allclose(np.sin(angles), sin, atol=1e-5)


@pytest.mark.usefixtures("default_vllm_config")
def test_a_rotation_whose_base_changes_with_length_cannot_be_turned_back() -> None:
    assert (
        rope_of(
            rotary(DynamicNTKScalingRotaryEmbedding, scaling_factor=2.0, max_trained_positions=64)
        )
        is None
    )


@pytest.mark.usefixtures("default_vllm_config")
def test_layers_that_share_one_rotary_module_all_find_it() -> None:
    shared = rotary()
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(3))
    for part in model.layers:
        part.rotary_emb = shared
    assert sorted(rope_by_layer(model)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("kv_heads", "ranks", "words"),
    [(2, 1, None), (4, 2, None), (2, 4, "2 KV heads"), (3, 2, "3 KV heads")],
)
def test_eviction_needs_kv_heads_that_the_ranks_can_divide(
    kv_heads: int, ranks: int, words: str | None
) -> None:
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
        model_config=SimpleNamespace(get_total_num_kv_heads=lambda: kv_heads),
    )
    reason = model_support.eviction_obstacle(config)
    assert reason is None if words is None else reason is not None and words in reason
