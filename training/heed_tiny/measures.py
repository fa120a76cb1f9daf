"""What training watches: sinks, induction, held-out losses, exact answers."""

import random

import torch
from torch import Tensor
from torch.nn import functional

from . import tasks
from .model import Llama
from .rows import Maker

SINK = 0.3  # a head is a sink head when its mean attention on position 0 exceeds this
FIRST_ROW = 8  # rows before this one see too few keys to count


@torch.no_grad()
def heads(model: Llama, tokens: Tensor) -> dict[str, object]:
    """Mean attention on position 0 per head over rows >= FIRST_ROW. tokens: [batch, rows]."""
    logits, weights = model.attention(tokens[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    stacked = torch.stack(weights)  # [layers, batch, heads, rows, keys]
    sinks = stacked[..., FIRST_ROW:, 0].mean(dim=(1, 3))
    largest = stacked[1:, ..., FIRST_ROW:, :].amax(dim=-1).mean()
    return {
        "text_loss": round(loss.item(), 3),
        "sink_share": round((sinks > SINK).float().mean().item(), 3),
        "sink_max": round(sinks.max().item(), 2),
        "sink_layers": [round(value, 2) for value in sinks.mean(dim=1).tolist()],
        "largest_weight": round(largest.item(), 2),
    }


@torch.no_grad()
def induction(model: Llama, bos: int, seed: int = 0, length: int = 60) -> dict[str, float]:
    """Random tokens twice after BOS: the attention of a token on the successor of its earlier
    copy (largest over heads), and the share of the second half predicted right."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(300, model.shape.vocabulary, (8, length), generator=generator)
    tokens = torch.cat((torch.full((8, 1), bos), half, half), dim=1)
    logits, weights = model.attention(tokens)
    rows = torch.arange(length + 1, 2 * length)
    score = torch.stack([w[:, :, rows, rows - length + 1].mean(dim=(0, 2)) for w in weights])
    right = (logits[:, rows].argmax(-1) == tokens[:, rows + 1]).float().mean()
    return {"induction": round(score.max().item(), 2), "repeats": round(right.item(), 3)}


@torch.no_grad()
def answers(model: Llama, maker: Maker, items: list[tasks.Item]) -> float:
    """Share of the items whose whole last answer, end of turn included, is the greedy one."""
    right = 0
    for item in items:
        tokens, _ = maker.chat(item)
        size = len(maker.tokenizer.encode(item.answer).ids) + 1
        row = torch.tensor([[maker.special["<|bos|>"], *tokens]])
        said = model(row[:, :-1])[0, -size:].argmax(-1)
        right += int(torch.equal(said, row[0, -size:]))
    return right / len(items)


def watch_items(
    books: list[str], count: int = 60, tokens: int = 160
) -> dict[str, list[tasks.Item]]:
    """The small fixed sets whose accuracy is logged during training (not the published ones)."""
    r = random.Random("watch")
    return {
        task.__name__: [
            tasks.sample(task, f"watch/{r.random()}", books, tokens, True) for _ in range(count)
        ]
        for task in tasks.EVALUATED
    }
