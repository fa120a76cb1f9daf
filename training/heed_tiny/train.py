"""Train heed-tiny on one CPU thread; checkpoints let it be stopped and taken up again.

    python -m heed_tiny.train CACHE RUN --tokens 14e6     # the same command resumes RUN

Writes RUN/checkpoint.pt and RUN/log.jsonl (one line of measures at a time).
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from . import checkpoints, measures, text
from .model import Llama
from .rows import ANSWER, PROMPT, TEXT, Maker, encode_books
from .tokenizer import BOS, identifier

LOSS_SHARES = {TEXT: 0.5, ANSWER: 0.5, PROMPT: 0.1}
AIDED = ((1, 4), (1, 5), (2, 3), (2, 4), (3, 0), (3, 2), (4, 3), (4, 4))  # layer, query head
AID_TARGET, AID_SHARE = 0.5, 0.3
PEAK, WARM_UP, DECAY, CLIP = 1.2e-3, 100, 1 / 3, 1.0


@dataclass(frozen=True)
class Stage:
    """Up to a share of all tokens: rows of `length`, `step_tokens` tokens a step."""

    until: float
    length: int
    step_tokens: int
    repeated: float


STAGES = (
    Stage(0.55, 128, 2048, 0.5),
    Stage(0.72, 256, 2048, 0.25),
    Stage(0.86, 512, 2048, 0.25),
    Stage(0.97, 1024, 2048, 0.25),
    Stage(1.00, 2048, 4096, 0.25),
)


def stage_at(share: float) -> Stage:
    return next((stage for stage in STAGES if share < stage.until), STAGES[-1])


def schedule(step: int, share: float) -> float:
    """Share of the peak learning rate: linear warm-up, 1, linear to a fiftieth in the last third."""
    decayed = 1.0 if share < 1 - DECAY else max(0.02, (1 - share) / DECAY)
    return min(1.0, (step + 1) / WARM_UP) * decayed


def loss_of(logits: Tensor, targets: Tensor, kinds: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy of text, of answers and of prompts, weighted by LOSS_SHARES."""
    each = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    total = each.new_zeros(())
    parts = {}
    for kind, name in ((TEXT, "text"), (ANSWER, "answer"), (PROMPT, "prompt")):
        chosen = (kinds.flatten() == kind).float()
        mean = (each * chosen).sum() / chosen.sum().clamp(min=1)
        total = total + LOSS_SHARES[kind] * mean
        parts[name] = mean.item()
    return total, parts


def sink_aid(weights: list[Tensor]) -> Tensor:
    """How far the aided heads' mean attention on position 0 is below the target (hinge)."""
    aided = [weights[layer][:, head, measures.FIRST_ROW :, 0].float() for layer, head in AIDED]
    return functional.relu(AID_TARGET - torch.stack(aided).mean(dim=(1, 2))).mean()


class Run:
    """A training run in a directory."""

    def __init__(
        self, cache: Path, directory: Path, tokens: float, seed: int, aid_from: float
    ) -> None:
        torch.manual_seed(seed)
        self.aid_from = aid_from
        self.directory, self.budget = directory, tokens
        tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
        books = text.read(cache / "train.txt")
        held_out = text.read(cache / "held_out.txt")
        self.maker = Maker(tokenizer, encode_books(tokenizer, books), books, seed)
        watched = encode_books(tokenizer, held_out)[: 16 * 255].reshape(16, 255)
        bos = torch.full((16, 1), identifier(tokenizer, BOS))
        self.watched_text = torch.cat((bos, torch.from_numpy(watched).long()), dim=1)
        self.watched_items = measures.watch_items(held_out)
        self.model = Llama()
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        gains = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.3}, {"params": gains, "weight_decay": 0.0}],
            lr=PEAK,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.seen, self.seconds = 0, 0, 0.0
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    def _resume(self) -> None:
        progress = checkpoints.resume(self.checkpoint, self.model, self.optimizer)
        self.step, self.seen = int(progress["step"]), int(progress["seen"])
        self.seconds = progress["seconds"]

    def save(self) -> None:
        progress = {"step": self.step, "seen": self.seen, "seconds": self.seconds}
        checkpoints.save(self.checkpoint, self.model, self.optimizer, progress)

    def steps(self) -> Iterator[tuple[Stage, dict[str, float]]]:
        """Train until the budget is used, one step at a time."""
        forward = torch.compile(self.model.attention, dynamic=False)
        while self.seen < self.budget:
            share = self.seen / self.budget
            stage = stage_at(share)
            count = stage.step_tokens // stage.length
            rows, kinds = self.maker.batch(self.step, count, stage.length, stage.repeated)
            for group in self.optimizer.param_groups:
                group["lr"] = PEAK * schedule(self.step, share)
            with torch.autocast("cpu", torch.bfloat16):
                logits, weights = forward(rows[:, :-1])
            loss, parts = loss_of(logits, rows[:, 1:], kinds[:, 1:])
            if self.seen >= self.aid_from:
                aid = sink_aid(weights)
                loss = loss + AID_SHARE * aid
                parts["aid"] = aid.item()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.seen += stage.step_tokens
            yield stage, parts

    def measure(self) -> dict[str, object]:
        """Everything that is watched, on held-out data."""
        bos = self.maker.special[BOS]
        found: dict[str, object] = {**measures.heads(self.model, self.watched_text)}
        found |= measures.induction(self.model, bos)
        for name, items in self.watched_items.items():
            found[name] = round(measures.answers(self.model, self.maker, items), 2)
        return found

    def train(self, every: int) -> None:
        """Train, measure and save every `every` steps; answer losses are running means."""
        self.directory.mkdir(parents=True, exist_ok=True)
        log = (self.directory / "log.jsonl").open("a", encoding="utf-8", buffering=1)
        smooth: dict[str, float] = {}
        started = time.monotonic() - self.seconds
        for stage, parts in self.steps():
            for name, value in parts.items():
                if value and math.isfinite(value):
                    smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
            if self.step % every == 0 or self.seen >= self.budget:
                self.seconds = time.monotonic() - started
                self.save()
                line = {"step": self.step, "tokens": self.seen, "minutes": self.seconds / 60}
                line |= {"length": stage.length, **smooth}
                rounded = {name: round(value, 3) for name, value in line.items()}
                log.write(json.dumps(rounded | self.measure()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=float, default=14e6)
    parser.add_argument("--every", type=int, default=250, help="steps between measures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--aid-from", type=float, default=math.inf, help="tokens after which sinks are aided"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(arguments.cache, arguments.run, arguments.tokens, arguments.seed, arguments.aid_from)
    run.train(arguments.every)


if __name__ == "__main__":
    main()
