"""Tiny vision-language models of random weights, one function for each architecture.

Sizes are the least that give every image several tiles, rows or patches of its own. Weights are larger
than models begin with, so that attention is uneven and edits show. Files are written as published models
have them, by hand where transformers' own classes need torchvision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from heed_server.models import bundled_model

SPREAD = 0.08
"""Standard deviation of random weights."""

TEXT_PART = "{{ part['text'] }}"
PIXELS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}
"""What every image processor here is told."""
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": SPREAD,
    "image_size": 28,
    "patch_size": 7,
}
"""Image encoders that look at tiles: 4 by 4 patches."""


@dataclass(frozen=True)
class Architecture:
    """How a model is made, and what its prompts look like.

    shown: what the chat template writes for an image.
    image_token: the token that stands for one embedding of an image.
    markers: tokens that vLLM counts as parts of an image although they are none of its embeddings.
    needs_torchvision: whether vLLM's module of it, or its processor in transformers, does.
    """

    make: Callable[[Path, Architecture], None]
    shown: str
    image_token: str
    markers: Sequence[str] = ()
    needs_torchvision: bool = False


def make_model(name: str, directory: Path) -> Path:
    """Write the model directory of the architecture `name`."""
    architecture = ARCHITECTURES[name]
    architecture.make(directory, architecture)
    return directory


def llava_next(directory: Path, architecture: Architecture) -> None:
    """Tiles of 28 pixels, of 4 by 4 patches, behind a view of the whole; a newline embedding ends each row."""
    tokenizer = write_tokenizer(directory, architecture, ["<image>"])
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    write_model(
        directory,
        "llava_next",
        text_config={"model_type": "llama", **text_shape(tokenizer)},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 64, **TOWER},
        image_token_index=identifier(tokenizer, "<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=16,
    )
    rename(directory, "vision_tower.", "vision_tower.vision_model.")
    write_processor(
        directory,
        {"processor_class": "LlavaNextProcessor", "patch_size": 7, "image_token": "<image>"}
        | {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
        {"image_processor_type": "LlavaNextImageProcessor", "do_center_crop": True, "do_pad": True}
        | {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
        | {"image_grid_pinpoints": pinpoints},
    )


def idefics3(directory: Path, architecture: Architecture) -> None:
    """Tiles of 28 pixels in rows and columns, each between markers of its own, then a view of the whole."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    marks = ["<fake_token_around_image>", "<global-img>", *rows]
    tokenizer = write_tokenizer(directory, architecture, ["<image>", "<end_of_utterance>", *marks])
    write_model(
        directory,
        "idefics3",
        text_config={"model_type": "llama", **text_shape(tokenizer)},
        vision_config=TOWER,
        image_token_id=identifier(tokenizer, "<image>"),
        scale_factor=2,
    )
    write_processor(
        directory,
        {"processor_class": "Idefics3Processor", "image_seq_len": 4},
        {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": True}
        | {"do_pad": True, "size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}},
    )


def qwen2_vl(directory: Path, architecture: Architecture) -> None:
    """As many patches as the picture has, four of them to a token, which stand at positions in three axes."""
    write_qwen(
        directory,
        architecture,
        "qwen2_vl",
        {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
    )


def qwen2_5_vl(directory: Path, architecture: Architecture) -> None:
    """The same with an encoder that attends within windows, in its last layer to all of the picture."""
    write_qwen(
        directory,
        architecture,
        "qwen2_5_vl",
        {"depth": 2, "hidden_size": 64, "out_hidden_size": 128, "num_heads": 2}
        | {"intermediate_size": 128, "window_size": 56, "fullatt_block_indexes": [1]},
    )


def internvl(directory: Path, architecture: Architecture) -> None:
    """Tiles of 28 pixels, of four tokens each, with a view of the whole, between a first and a last marker."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = write_tokenizer(directory, architecture, list(named.values()), named)
    write_model(
        directory,
        "internvl",
        text_config={"model_type": "qwen2", **text_shape(tokenizer)},
        vision_config={"layer_scale_init_value": 0.5, **TOWER},
        image_token_id=identifier(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    write_processor(
        directory,
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": True}
        | {"min_patches": 1, "max_patches": 4, "size": {"height": 28, "width": 28}},
    )


ARCHITECTURES = {
    "LLaVA-NeXT": Architecture(llava_next, "<image>", "<image>"),
    "Idefics3": Architecture(
        idefics3, "<image>", "<image>", ["<fake_token_around_image>", "<global-img>"]
    ),
    "Qwen2-VL": Architecture(
        qwen2_vl,
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|image_pad|>",
        needs_torchvision=True,
    ),
    "Qwen2.5-VL": Architecture(
        qwen2_5_vl,
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|image_pad|>",
        needs_torchvision=True,
    ),
    "InternVL": Architecture(
        internvl, "<IMG_CONTEXT>", "<IMG_CONTEXT>", ["<img>", "</img>"], needs_torchvision=True
    ),
}


def write_qwen(
    directory: Path, architecture: Architecture, kind: str, encoder: dict[str, Any]
) -> None:
    """encoder: the image encoder's own sizes; its output is as wide as the language model."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = write_tokenizer(directory, architecture, marks)
    shape = text_shape(tokenizer)
    del shape["head_dim"]  # hidden size over heads, by definition
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    start, end, image, video = (identifier(tokenizer, mark) for mark in marks)
    write_model(
        directory,
        kind,
        text_config={**shape, "rope_parameters": rotary},
        vision_config={"patch_size": 14, "initializer_range": SPREAD, **encoder},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    write_processor(
        directory,
        {"processor_class": "Qwen2VLProcessor" if kind == "qwen2_vl" else "Qwen2_5_VLProcessor"},
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
        | {"temporal_patch_size": 2, "min_pixels": 4 * 28 * 28, "max_pixels": 24 * 28 * 28},
    )


def text_shape(tokenizer: Any) -> dict[str, Any]:
    """The language model: 2 layers of 4 query heads on 2 KV heads."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": SPREAD,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def write_model(directory: Path, kind: str, **settings: Any) -> None:
    """`config.json` and random weights; transformers' own defaults where nothing is said."""
    config = AutoConfig.for_model(kind, tie_word_embeddings=False, **settings)
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # Parameters that begin as zeros or ones would hide a bias or a newline that is left out.
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter.std() == 0:
                parameter.add_(torch.randn_like(parameter), alpha=SPREAD)
    model.save_pretrained(directory)


def rename(directory: Path, ours: str, published: str) -> None:
    """Change how names of weights begin: transformers writes other names than published files have."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    save_file(
        {
            published + name.removeprefix(ours) if name.startswith(ours) else name: weight
            for name, weight in weights.items()
        },
        file,
        metadata={"format": "pt"},
    )


def write_tokenizer(
    directory: Path,
    architecture: Architecture,
    special: Sequence[str],
    named: dict[str, str] | None = None,
) -> Any:
    """heed-tiny's tokenizer with more special tokens, and its chat template with images.

    named: special tokens that are attributes of the tokenizer.
    """
    bundled = bundled_model("heed-tiny")
    assert bundled is not None
    tokenizer = AutoTokenizer.from_pretrained(
        bundled.directory, **({"extra_special_tokens": named} if named else {})
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(special)}, replace_extra_special_tokens=False
    )
    part = "{% if part['type'] == 'image' %}" + architecture.shown
    tokenizer.chat_template = tokenizer.chat_template.replace(
        TEXT_PART, part + "{% else %}" + TEXT_PART + "{% endif %}"
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def write_processor(directory: Path, processor: dict[str, Any], images: dict[str, Any]) -> None:
    """`processor_config.json` and `preprocessor_config.json`."""
    (directory / "processor_config.json").write_text(json.dumps(processor))
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"processor_class": processor["processor_class"], **PIXELS, **images})
    )


def identifier(tokenizer: Any, token: str) -> int:
    """The number of a special token, which one word of the vocabulary it has to be."""
    (number,) = tokenizer(token, add_special_tokens=False).input_ids
    return int(number)
