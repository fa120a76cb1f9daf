"""The reference on vision-language models of any architecture: positions and pixels as transformers' own
processor and model have them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers_reference import Reference
from vision_definition import Images


class Angles:
    """Cosines and sines by a token's index in the sequence, as the model itself gives them to its layers.

    Where images stand at positions in several axes, an index says what no position could.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: nn.Module) -> None:
        rotary.register_forward_hook(self.keep)

    def keep(self, rotary: nn.Module, given: Any, turned: tuple[Tensor, Tensor]) -> None:
        """Of one sequence: [1, tokens, head_dim] each."""
        self.cos, self.sin = turned

    def __call__(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """In the place of the rotary module, for `position_ids` [1, n] that are indices."""
        return self.cos[:, position_ids[0]], self.sin[:, position_ids[0]]


@lru_cache(maxsize=2)
def load(model_dir: str) -> tuple[Any, Any, Angles]:
    """Model, processor and angles of a directory, read once."""
    model = AutoModelForImageTextToText.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    return model, AutoProcessor.from_pretrained(model_dir), Angles(decoder_of(model).rotary_emb)


def decoder_of(model: Any) -> Any:
    """The module that has the language model's layers."""
    inner = model.model
    return inner.text_model if hasattr(inner, "text_model") else inner.language_model


class ArchitectureReference(Reference):
    """One model, and one chat with its pictures.

    prompt: token ids as transformers' processor writes them.
    visual: by picture, the positions of the tokens that take its embeddings.
    """

    def __init__(
        self, model_dir: str, image_token: str, markers: Sequence[str], parts: Sequence[str | bytes]
    ) -> None:
        """parts: of the user's turn, texts and files of pictures.

        markers: tokens that belong to an image and take no embedding.
        """
        model, self.processor, self.angles = load(model_dir)
        super().__init__(model)
        tokenizer = self.processor.tokenizer
        self.image_token = tokenizer.convert_tokens_to_ids(image_token)
        self.markers = {self.image_token, *tokenizer.convert_tokens_to_ids(list(markers))}
        self.given = self.process(parts)
        self.prompt: list[int] = self.given["input_ids"][0].tolist()
        places = [at for at, token in enumerate(self.prompt) if token == self.image_token]
        self.visual: list[list[int]] = []
        for part in parts:
            if isinstance(part, bytes):
                alone = self.process([part])["input_ids"][0].tolist()
                count = alone.count(self.image_token)
                self.visual.append(places[:count])
                places = places[count:]
        assert not places

    def process(self, parts: Sequence[str | bytes]) -> dict[str, Tensor]:
        """What the model is called with for a chat of one turn."""
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in parts
        ]
        pictures = [
            Image.open(io.BytesIO(part)).convert("RGB") for part in parts if isinstance(part, bytes)
        ]
        text = self.processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        # The template writes the first token itself.
        given = self.processor(
            text=[text], images=pictures, return_tensors="pt", add_special_tokens=False
        )
        return dict(given)

    @property
    def decoder(self) -> Any:
        decoder = decoder_of(self.model)
        return SimpleNamespace(layers=decoder.layers, config=decoder.config, rotary_emb=self.angles)

    def inputs(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        if self.image_token not in tokens:
            return super().inputs(tokens)
        given = {name: value for name, value in self.given.items() if name != "attention_mask"}
        if "mm_token_type_ids" in given:
            kinds = given["mm_token_type_ids"]
            answer = len(tokens) - kinds.shape[1]
            given["mm_token_type_ids"] = nn.functional.pad(kinds, (0, answer))  # 0: text
        return given | super().inputs(tokens)

    def images(self, tokens: Sequence[int]) -> Images:
        visual = torch.tensor(list(tokens)) == self.image_token
        if not visual.any():
            return Images.of(visual)
        marked = [at for at, token in enumerate(tokens) if token in self.markers]
        return Images(visual, marked[0], marked[-1] + 1)
