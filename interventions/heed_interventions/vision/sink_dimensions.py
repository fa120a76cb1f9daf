"""Dimensions of the hidden states in which sinks stand out, of models where they are known.

They belong to the language model's pre-training and stay through later tuning; so a vision-language model
has those of the language model it was made from. From VAR's released code and its paper.
"""

_KNOWN = {
    ("llama", 4096, 32, 32): (1415, 2533),  # LLaMA-2-7B: LLaVA-1.5-7B
    ("llama", 5120, 40, 40): (2100, 4743),  # LLaMA-2-13B: LLaVA-1.5-13B, LLaVA-1.6-vicuna-13B
    ("qwen2", 3584, 28, 4): (458, 2570),  # Qwen2-7B: Qwen2-VL-7B
}
_LIKE = {"qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2"}
"""Types that are another one's language model."""


def sink_dimensions(
    model_type: str, hidden_size: int, layers: int, kv_heads: int
) -> tuple[int, ...]:
    """Those of the model with this shape; empty where none are known.

    model_type: of the language model, as transformers names it.
    """
    return _KNOWN.get((_LIKE.get(model_type, model_type), hidden_size, layers, kv_heads), ())
