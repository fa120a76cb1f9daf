"""Model directories to measure on: the bundled model, and random weights of real shapes."""

import json
from pathlib import Path
from typing import Any

from heed_server.models import bundled_model

MODELS = ("heed-tiny", "qwen2-0.5b")
QWEN2_05B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "initializer_range": 0.02,
}
"""The shape of Qwen2-0.5B. Its weights are drawn at load (vLLM's `--load-format dummy`)."""


def bundled_directory() -> Path:
    """Directory of heed-tiny."""
    model = bundled_model("heed-tiny")
    if model is None:
        raise FileNotFoundError("heed-tiny is not installed")
    return model.directory


def chosen(name: str, dtype: str, scratch: Path) -> tuple[Path, list[str], int]:
    """Directory, vLLM's flags, and number of tokens in the vocabulary of a model of `MODELS`."""
    if name == "heed-tiny":
        return bundled_directory(), ["--dtype", dtype], 2048
    directory = write_qwen2_shape(scratch / "qwen2", dtype)
    return directory, ["--dtype", dtype, "--load-format", "dummy"], int(QWEN2_05B["vocab_size"])


def write_qwen2_shape(directory: Path, dtype: str) -> Path:
    """Write a model directory without weights; its tokenizer has one word per id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    directory.mkdir(parents=True, exist_ok=True)
    config = QWEN2_05B | {"torch_dtype": dtype}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    words = {f"w{index}": index for index in range(QWEN2_05B["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w151645").save_pretrained(
        directory
    )
    return directory
