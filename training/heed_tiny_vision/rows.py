"""Training rows: one picture and a conversation about it, and rehearsal rows of heed-tiny."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heed_tiny.rows import ANSWER, IGNORED, Maker
from heed_tiny.tokenizer import BOS, END
from heed_tiny.words import SYSTEM

from . import questions, scenes
from .model import NO_IMAGE, normalise
from .pictures import patch_labels, render
from .shapes import KINDS

IMAGE = "<image>"  # what vLLM writes for an image of LLaVA
IMAGE_WAS = "<|unused0|>"  # heed-tiny's name of the same token
SYSTEM_SHARE = 0.2  # rows that begin with a system message
CAPTION_FIRST = 0.4  # rows whose caption comes before the questions, not after
MOST_QUESTIONS = 4


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    images: [pictures, 3, SIZE, SIZE]. tokens, kinds, patches: [pictures + rehearsal, length + 1];
    `kinds` as in `heed_tiny.rows`, `patches` as in `Llava.forward`.
    patch_labels: [pictures, patches, 2]. scene_kinds: [pictures, kinds], 1 where there.
    """

    images: Tensor
    tokens: Tensor
    kinds: Tensor
    patches: Tensor
    patch_labels: Tensor
    scene_kinds: Tensor


class VisionMaker:
    """Makes the batch of a step; the same step of the same seed is always the same batch."""

    def __init__(self, text: Maker, image_token: int, patches: int) -> None:
        self.text, self.image_token, self.patches = text, image_token, patches

    def batch(self, step: int, pictures: int, rehearsal: int, length: int) -> Batch:
        seed = f"vision/{self.text.seed}/{step}"
        chosen = [scenes.sample(f"{seed}/{row}", evaluation=False) for row in range(pictures)]
        rows = [
            self.row(scene, random.Random(f"{seed}/{row}/talk"), row, length)
            for row, scene in enumerate(chosen)
        ]
        parts = [torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)]
        if rehearsal:
            old, old_kinds = self.text.batch(step, rehearsal, length, 0.25)
            none = torch.full_like(old, NO_IMAGE)
            parts = [torch.cat(pair) for pair in zip(parts, (old, old_kinds, none), strict=True)]
        tokens, kinds, places = parts
        return Batch(
            normalise(np.stack([render(scene) for scene in chosen])),
            tokens,
            kinds,
            places,
            torch.from_numpy(np.stack([patch_labels(scene) for scene in chosen])),
            torch.tensor([[float(kind in scene.kinds) for kind in KINDS] for scene in chosen]),
        )

    def row(
        self, scene: scenes.Scene, r: random.Random, picture: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, kinds and patches of the conversation about one picture, each [length + 1]."""
        system = r.choice(SYSTEM) if r.random() < SYSTEM_SHARE else None
        tokens, kinds, patches = self.opening(picture, system)
        end = self.text.special[END]
        for number, turn in enumerate(conversation(scene, r)):
            question, answer = self._encode(turn.question), self._encode(turn.answer)
            # The first user turn was opened before the picture.
            asked = [*question, end] if number == 0 else [self.text.roles["user"], *question, end]
            said = [*answer, end]
            if len(tokens) + len(asked) + 1 + len(said) > length + 1:
                break
            tokens += [*asked, self.text.roles["assistant"], *said]
            kinds += [IGNORED] * (len(asked) + 1) + [ANSWER] * len(said)
        missing = length + 1 - len(tokens)
        tokens += [end] * missing
        kinds += [IGNORED] * missing
        patches += [NO_IMAGE] * (length + 1 - len(patches))
        return np.array(tokens), np.array(kinds), np.array(patches)

    def opening(
        self, picture: int = 0, system: str | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        """BOS, the system turn if there is one, and the user's turn up to the end of the picture."""
        special, roles = self.text.special, self.text.roles
        tokens = [special[BOS]]
        if system is not None:
            tokens += [roles["system"], *self._encode(system), special[END]]
        tokens.append(roles["user"])
        first = picture * self.patches
        patches = [NO_IMAGE] * len(tokens) + list(range(first, first + self.patches))
        tokens += [self.image_token] * self.patches
        return tokens, [IGNORED] * len(tokens), patches

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Tokens and patches of a question about one picture, as the chat template writes them."""
        tokens, _, patches = self.opening()
        tokens += [*self._encode(question), self.text.special[END], self.text.roles["assistant"]]
        return tokens, patches + [NO_IMAGE] * (len(tokens) - len(patches))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.text.tokenizer.encode(text).ids
        return ids


def conversation(scene: scenes.Scene, r: random.Random) -> list[questions.Turn]:
    """Different questions in any order, and a caption before or after them."""
    asked: dict[str, questions.Turn] = {}
    for _ in range(MOST_QUESTIONS):
        turn = questions.ask(r.choice(questions.TASKS), scene, r)
        if turn is not None:
            asked[turn.question] = turn
    described = questions.Turn("caption", questions.CAPTION_QUESTION, questions.caption(scene, r))
    turns = list(asked.values())
    return [described, *turns] if r.random() < CAPTION_FIRST else [*turns, described]
