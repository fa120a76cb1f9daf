"""Train heed-tiny-vision on one CPU thread; the same command takes a stopped run up again.

    python -m heed_tiny_vision.train CACHE HEED_TINY RUN --steps 60000

CACHE holds the books (`heed_tiny.text`), HEED_TINY the exported text model. Writes
RUN/checkpoint.pt and RUN/log.jsonl (a line of running losses and measures at every checkpoint).
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from heed_tiny import checkpoints, text
from heed_tiny.rows import ANSWER, Maker, encode_books
from heed_tiny.tokenizer import identifier
from heed_tiny.train import CLIP, loss_of, schedule

from . import watch
from .model import Llava, Seen
from .rows import IMAGE_WAS, Batch, VisionMaker

TOWER_PEAK, LANGUAGE_PEAK = 1e-3, 4e-4  # learning rates
PICTURES, REHEARSAL, LENGTH = 16, 4, 160  # rows of a step, and their tokens
AID_SHARE, REHEARSAL_SHARE = 0.3, 0.5  # of the losses, beside the answers' 1


def aid_loss(seen: Seen, batch: Batch) -> Tensor:
    """What the linear readers miss: kind and colour of every patch, kinds in the scene."""
    labels = batch.patch_labels.flatten(0, 1)
    kind = functional.cross_entropy(seen.patch_kind.flatten(0, 1).float(), labels[:, 0])
    colour = functional.cross_entropy(seen.patch_colour.flatten(0, 1).float(), labels[:, 1])
    there = functional.binary_cross_entropy_with_logits(seen.scene_kinds.float(), batch.scene_kinds)
    return kind + colour + there


def answer_loss(logits: Tensor, tokens: Tensor, kinds: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens, their ends of turn included."""
    chosen = kinds == ANSWER
    return functional.cross_entropy(logits[chosen].float(), tokens[chosen])


class Run:
    """A training run in a directory."""

    def __init__(self, cache: Path, start: Path, directory: Path, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.directory, self.budget = directory, steps
        tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
        books = text.read(cache / "train.txt")
        self.model = Llava()
        self.model.language_model.load_state_dict(load_file(start / "model.safetensors"))
        self.maker = VisionMaker(
            Maker(tokenizer, encode_books(tokenizer, books), books, seed),
            identifier(tokenizer, IMAGE_WAS),
            self.model.shape.tower.patches,
        )
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.98), fused=True)
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            progress = checkpoints.resume(self.checkpoint, self.model, self.optimizer)
            self.step, self.seconds = int(progress["step"]), progress["seconds"]

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    def _groups(self) -> list[dict[str, object]]:
        """Matrices decay, gains and biases do not; `peak` is each group's learning rate."""
        groups: list[dict[str, object]] = []
        for name, module in self.model.named_children():
            peak = LANGUAGE_PEAK if name == "language_model" else TOWER_PEAK
            for is_matrix, decay in ((True, 0.1), (False, 0.0)):
                chosen = [p for p in module.parameters() if (p.dim() > 1) == is_matrix]
                groups.append({"params": chosen, "weight_decay": decay, "lr": peak, "peak": peak})
        return [group for group in groups if group["params"]]

    def save(self) -> None:
        progress = {"step": self.step, "seconds": self.seconds}
        checkpoints.save(self.checkpoint, self.model, self.optimizer, progress)

    def steps(self) -> Iterator[dict[str, float]]:
        """Train until the budget is used; yields the losses of each step."""
        forward = torch.compile(self.model, dynamic=False)
        while self.step < self.budget:
            batch = self.maker.batch(self.step, PICTURES, REHEARSAL, LENGTH)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(self.step, self.step / self.budget)
            with torch.autocast("cpu", torch.bfloat16):
                seen = forward(batch.images, batch.tokens[:, :-1], batch.patches[:, :-1])
            tokens, kinds = batch.tokens[:, 1:], batch.kinds[:, 1:]
            answers = answer_loss(seen.logits[:PICTURES], tokens[:PICTURES], kinds[:PICTURES])
            old, parts = loss_of(seen.logits[PICTURES:], tokens[PICTURES:], kinds[PICTURES:])
            aid = aid_loss(seen, batch)
            loss = answers + REHEARSAL_SHARE * old + AID_SHARE * aid
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            rehearsed = {f"rehearsal_{name}": value for name, value in parts.items()}
            yield {"seen_answer": answers.item(), "aid": aid.item(), **rehearsed}

    def train(self, every: int) -> None:
        """Save, measure and log every `every` steps; the losses are running means."""
        self.directory.mkdir(parents=True, exist_ok=True)
        log = (self.directory / "log.jsonl").open("a", encoding="utf-8", buffering=1)
        turns = watch.turns()
        smooth: dict[str, float] = {}
        started = time.monotonic() - self.seconds
        for losses in self.steps():
            for name, value in losses.items():
                smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
            if self.step % every == 0 or self.step == self.budget:
                self.seconds = time.monotonic() - started
                self.save()
                line = {"step": self.step, "minutes": self.seconds / 60, **smooth}
                line |= watch.accuracies(self.model, self.maker, turns)
                rounded = {name: round(value, 3) for name, value in line.items()}
                log.write(json.dumps(rounded) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path)
    parser.add_argument("start", type=Path, metavar="heed_tiny")
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=60000)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    Run(given.cache, given.start, given.run, given.steps, given.seed).train(given.every)


if __name__ == "__main__":
    main()
