"""Export a checkpoint as a Hugging Face Llama in bf16, with tokenizer and chat template.

    python -m heed_tiny.export CACHE RUN OUT

OUT may hold an older export; its evaluation sets and card are left alone.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from .model import Shape
from .tokenizer import BOS, CHAT_TEMPLATE, END, PAD, SPECIAL, identifier


def config(shape: Shape, tokenizer: Tokenizer) -> dict[str, object]:
    """`config.json` of `transformers.LlamaForCausalLM`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.norm_eps,
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": True,
        "use_cache": True,
        **special_tokens(tokenizer),
        "torch_dtype": "bfloat16",
    }


def special_tokens(tokenizer: Tokenizer) -> dict[str, object]:
    return {
        "bos_token_id": identifier(tokenizer, BOS),
        "eos_token_id": identifier(tokenizer, END),
        "pad_token_id": identifier(tokenizer, PAD),
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, object]:
    """`generation_config.json`: greedy."""
    return {"do_sample": False, **special_tokens(tokenizer)}


def tokenizer_config(shape: Shape) -> dict[str, object]:
    """`tokenizer_config.json`; the template writes BOS, so encoding adds no special tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [token for token in SPECIAL if token not in (BOS, END, PAD)],
        "model_max_length": shape.positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write_json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export(weights: dict[str, Tensor], shape: Shape, tokenizer_file: Path, out: Path) -> None:
    """Write the model directory. The output matrix is the embedding (tied), so it is left out."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rounded = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
    weights_file = out / "model.safetensors"
    save_file(rounded, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # safetensors writes 0600
    shutil.copyfile(tokenizer_file, out / "tokenizer.json")
    write_json(out / "config.json", config(shape, tokenizer))
    write_json(out / "tokenizer_config.json", tokenizer_config(shape))
    write_json(out / "generation_config.json", generation_config(tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    state = torch.load(arguments.run / "checkpoint.pt", weights_only=True, map_location="cpu")
    export(state["model"], Shape(), arguments.cache / "tokenizer.json", arguments.out)
    size = (arguments.out / "model.safetensors").stat().st_size
    print(f"step {state['step']}, {state['seen'] / 1e6:.1f} M tokens, {size} bytes of weights")


if __name__ == "__main__":
    main()
