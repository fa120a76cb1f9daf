"""Export a checkpoint as a Hugging Face LLaVA in bf16, with tokenizer, template and processor.

    python -m heed_tiny_vision.export HEED_TINY RUN OUT

HEED_TINY is the exported text model, whose tokenizer it keeps. OUT may hold an older export; its
evaluation sets and card are left alone.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from heed_tiny import export as text_export
from heed_tiny.tokenizer import BOS, CHAT_TEMPLATE, END, PAD, SPECIAL, identifier

from .model import DEVIATION, MEAN, VisionShape
from .rows import IMAGE, IMAGE_WAS
from .tower import TowerShape

TEXT_PART = "{{ part['text'] }}"
IMAGE_PART = (
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}" + TEXT_PART + "{% endif %}"
)  # vLLM hands every image_url to the template as a part of this type


def tower_config(shape: TowerShape) -> dict[str, object]:
    """`vision_config`, of `transformers.CLIPVisionModel`."""
    return {
        "model_type": "clip_vision_model",
        "image_size": shape.image,
        "patch_size": shape.patch,
        "num_channels": 3,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": shape.norm_eps,
        "attention_dropout": 0.0,
        "projection_dim": shape.width,
    }


def config(shape: VisionShape, tokenizer: Tokenizer) -> dict[str, object]:
    """`config.json` of `transformers.LlavaForConditionalGeneration`."""
    text = text_export.config(shape.text, tokenizer)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": identifier(tokenizer, IMAGE),
        "image_seq_length": shape.tower.patches,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
        "torch_dtype": text["torch_dtype"],
        "text_config": text,
        "vision_config": tower_config(shape.tower),
    }


def image_processor(shape: TowerShape) -> dict[str, object]:
    """`preprocessor_config.json`: the shorter side to the image's size, the middle, normalised."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shape.image},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": shape.image, "width": shape.image},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [DEVIATION] * 3,
    }


def processor(shape: TowerShape) -> dict[str, object]:
    """`processor_config.json` of `transformers.LlavaProcessor`."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": shape.patch,
        "num_additional_image_tokens": 1,  # the class token, which "default" takes away again
        "vision_feature_select_strategy": "default",
    }


def tokenizer_config(shape: VisionShape) -> dict[str, object]:
    """`tokenizer_config.json`; the template is a file of its own, for tokenizer and processor."""
    settings = text_export.tokenizer_config(shape.text)
    del settings["chat_template"]
    renamed = [IMAGE if token == IMAGE_WAS else token for token in SPECIAL]
    settings["additional_special_tokens"] = [t for t in renamed if t not in (BOS, END, PAD)]
    return settings | {"processor_class": "LlavaProcessor"}


def published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under LLaVA's names, in bf16; the linear readers of training stay behind."""
    tower, in_file = "vision_tower.", "vision_tower.vision_model."
    return {
        name.replace(tower, in_file, 1) if name.startswith(tower) else name: value.to(
            torch.bfloat16
        ).contiguous()
        for name, value in weights.items()
        if not name.startswith("aid.")
    }


def export(weights: dict[str, Tensor], shape: VisionShape, heed_tiny: Path, out: Path) -> None:
    """Write the model directory. The output matrix is the embedding (tied), so it is left out."""
    out.mkdir(parents=True, exist_ok=True)
    old = (heed_tiny / "tokenizer.json").read_text(encoding="utf-8")
    (out / "tokenizer.json").write_text(old.replace(IMAGE_WAS, IMAGE), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    weights_file = out / "model.safetensors"
    save_file(published(weights), weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # safetensors writes 0600
    template = CHAT_TEMPLATE.replace(TEXT_PART, IMAGE_PART)
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    files = {
        "config": config(shape, tokenizer),
        "preprocessor_config": image_processor(shape.tower),
        "processor_config": processor(shape.tower),
        "tokenizer_config": tokenizer_config(shape),
        "generation_config": text_export.generation_config(tokenizer),
    }
    for name, content in files.items():
        text_export.write_json(out / f"{name}.json", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("start", type=Path, metavar="heed_tiny")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    state = torch.load(given.run / "checkpoint.pt", weights_only=True, map_location="cpu")
    export(state["model"], VisionShape(), given.start, given.out)
    size = (given.out / "model.safetensors").stat().st_size
    print(f"step {state['step']}, {state['seconds'] / 60:.0f} minutes, {size} bytes of weights")


if __name__ == "__main__":
    main()
