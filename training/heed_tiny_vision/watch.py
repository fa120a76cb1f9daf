"""What training watches: exact answers on held-out scenes (not the published ones)."""

import random

import numpy as np
import torch

from heed_tiny.tokenizer import END

from . import pictures, questions, scenes
from .model import NO_IMAGE, Llava, normalise
from .rows import VisionMaker

Turns = dict[str, list[tuple[scenes.Scene, questions.Turn]]]


def turns(count: int = 60) -> Turns:
    """`count` questions of each task, and captions without invented things, by a fixed seed."""
    r = random.Random("watch")
    found: Turns = {task: [] for task in (*questions.TASKS, "caption")}
    number = 0
    while any(len(chosen) < count for chosen in found.values()):
        scene = scenes.sample(f"watch/{number}", evaluation=True)
        number += 1
        plain = questions.Turn("caption", questions.CAPTION_QUESTION, questions.caption(scene))
        for task, chosen in found.items():
            turn = plain if task == "caption" else questions.ask(task, scene, r)
            if turn is not None and len(chosen) < count:
                chosen.append((scene, turn))
    return found


@torch.no_grad()
def accuracies(model: Llava, maker: VisionMaker, asked: Turns) -> dict[str, float]:
    """Share of each task's answers that are the greedy ones, end of turn included."""
    return {
        task: sum(is_greedy(model, maker, *each) for each in chosen) / len(chosen)
        for task, chosen in asked.items()
    }


def is_greedy(model: Llava, maker: VisionMaker, scene: scenes.Scene, turn: questions.Turn) -> bool:
    answer = [*maker.text.tokenizer.encode(turn.answer).ids, maker.text.special[END]]
    tokens, patches = maker.prompt(turn.question)
    row = torch.tensor([[*tokens, *answer]])
    places = torch.tensor([[*patches, *[NO_IMAGE] * len(answer)]])
    image = normalise(pictures.render(scene)[None])
    said = model(image, row[:, :-1], places[:, :-1]).logits[0, -len(answer) :].argmax(dim=-1)
    return bool(np.array_equal(said, answer))
