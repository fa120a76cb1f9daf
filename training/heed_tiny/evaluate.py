"""Measure an exported heed-tiny: tasks with intervals, sinks, perplexities, two probes.

    python -m heed_tiny.evaluate MODEL [--json FILE]     # reads MODEL/evaluation/*.jsonl

Everything runs in transformers with eager attention and float32, and knows nothing of Heed: where
a measure needs altered attention, it is an additive mask on the logits.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from .measures import FIRST_ROW, SINK

GAMMAS = (0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)
BOOSTS = (1.0, 2.0, 4.0, 8.0, 16.0)


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / count) ** 2 / 4)
    return round(100 * (middle - half), 1), round(100 * (middle + half), 1)


def causal(rows: int) -> Tensor:
    """[1, 1, rows, rows]: 0 where attended, -inf elsewhere."""
    return torch.full((rows, rows), -math.inf).triu(1)[None, None]


class Subject:
    """The exported model under measurement."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.evaluation = directory / "evaluation"

    def records(self, task: str) -> Iterator[dict[str, Any]]:
        for line in (self.evaluation / f"{task}.jsonl").read_text(encoding="utf-8").splitlines():
            yield json.loads(line)

    @torch.no_grad()
    def logits(self, tokens: list[int], mask: Tensor | None = None) -> Tensor:
        """[rows, vocabulary]. mask: [1, 1, rows, rows], added to the attention logits."""
        given = causal(len(tokens)) if mask is None else mask
        result: Tensor = self.model(torch.tensor([tokens]), attention_mask=given).logits[0]
        return result

    def prompt(self, record: dict[str, Any]) -> tuple[str, list[int]]:
        text: str = self.tokenizer.apply_chat_template(
            record["messages"], tokenize=False, add_generation_prompt=True
        )
        return text, self.encode(text)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def answer(self, text: str) -> list[int]:
        return [*self.encode(text), self.tokenizer.eos_token_id]

    def is_greedy(self, record: dict[str, Any], bias: Tensor | None = None) -> bool:
        """Whether greedy decoding says the answer and ends the turn. bias: [prompt], per key."""
        _, prompt = self.prompt(record)
        answer = self.answer(record["answer"])
        tokens = prompt + answer
        mask = causal(len(tokens) - 1)
        if bias is not None:
            mask[..., : len(prompt)] += bias
        said = self.logits(tokens[:-1], mask)[-len(answer) :].argmax(dim=-1)
        return said.tolist() == answer

    def best_choice(self, record: dict[str, Any], bias: Tensor | None = None) -> str:
        """The choice of the largest likelihood, its end of turn included."""
        _, prompt = self.prompt(record)
        scores = {}
        for choice in record["choices"]:
            answer = self.answer(choice)
            tokens = prompt + answer
            mask = causal(len(tokens) - 1)
            if bias is not None:
                mask[..., : len(prompt)] += bias
            logs = self.logits(tokens[:-1], mask)[-len(answer) :].log_softmax(dim=-1)
            scores[choice] = logs[range(len(answer)), answer].sum().item()
        best: str = max(scores, key=lambda choice: scores[choice])
        return best


def share(right: int, count: int) -> dict[str, Any]:
    return {
        "percent": round(100 * right / count, 1),
        "interval": interval(right, count),
        "items": count,
    }


def task_accuracy(subject: Subject, task: str) -> dict[str, Any]:
    """Greedy answers, and the most likely choice where there are choices."""
    records = list(subject.records(task))
    found = {"greedy": share(sum(map(subject.is_greedy, records)), len(records))}
    if "choices" in records[0]:
        right = sum(subject.best_choice(record) == record["answer"] for record in records)
        found["choice"] = share(right, len(records))
    return found


@torch.no_grad()
def sinks(subject: Subject, sequences: list[list[int]]) -> dict[str, Any]:
    """Mean attention on position 0 of every head, rows >= FIRST_ROW, mean over the sequences."""
    total = torch.zeros(())
    for tokens in sequences:
        weights = subject.model(torch.tensor([tokens]), output_attentions=True).attentions
        stacked = torch.stack([layer[0] for layer in weights])  # [layers, heads, rows, keys]
        total = total + stacked[:, :, FIRST_ROW:, 0].mean(dim=-1) / len(sequences)
    return {
        "heads_above": int((total > SINK).sum()),
        "heads": total.numel(),
        "largest": round(total.max().item(), 2),
        "per_layer": [[round(value, 2) for value in layer] for layer in total.tolist()],
    }


def windowed(rows: int, first: int, window: int) -> Tensor:
    """Causal mask that leaves the first `first` keys and the last `window` (positions kept)."""
    key, row = torch.arange(rows)[None, :], torch.arange(rows)[:, None]
    seen = (key <= row) & ((key > row - window) | (key < first))
    return torch.zeros(rows, rows).masked_fill(~seen, -math.inf)[None, None]


def perplexity(subject: Subject, sequences: list[list[int]], mask: Tensor) -> float:
    """Over the second half of every sequence; all sequences of one length."""
    losses = []
    for tokens in sequences:
        half = len(tokens) // 2
        logits = subject.logits(tokens[:-1], mask)[half:]
        losses.append(functional.cross_entropy(logits, torch.tensor(tokens[half + 1 :])))
    return round(torch.stack(losses).mean().exp().item(), 1)


def passages(subject: Subject, length: int, most: int = 24) -> list[list[int]]:
    """BOS and `length - 1` tokens of held-out text, as many such pieces as there are."""
    bos, found = subject.tokenizer.bos_token_id, []
    for record in subject.records("long_text"):
        ids = subject.encode(record["text"])
        starts = range(0, len(ids) - length + 2, length - 1)
        found += [[bos, *ids[start : start + length - 1]] for start in starts]
    return found[:most]


def gamma_probe(subject: Subject, task: str) -> dict[str, float]:
    """Choice accuracy in percent with ln(gamma) added to the logit of position 0 in all heads."""
    records = list(subject.records(task))
    found = {}
    for gamma in GAMMAS:
        right = 0
        for record in records:
            bias = torch.zeros(len(subject.prompt(record)[1]))
            bias[0] = math.log(gamma)
            right += subject.best_choice(record, bias) == record["answer"]
        found[str(gamma)] = round(100 * right / len(records), 1)
    return found


def emphasis_probe(subject: Subject) -> dict[str, float]:
    """Greedy accuracy in percent with ln(boost) added to the logits of the emphasised span."""
    records = list(subject.records("emphasis"))
    found = {}
    for boost in BOOSTS:
        right = 0
        for record in records:
            text = subject.prompt(record)[0]
            start = text.index(record["emphasise"])
            end = start + len(record["emphasise"])
            offsets = subject.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            bias = torch.tensor(
                [math.log(boost) if a < end and b > start else 0.0 for a, b in offsets]
            )
            right += subject.is_greedy(record, bias)
        found[str(boost)] = round(100 * right / len(records), 1)
    return found


def evaluate(directory: Path) -> dict[str, Any]:
    subject = Subject(directory)
    files = sorted(path.stem for path in subject.evaluation.glob("*.jsonl"))
    report: dict[str, Any] = {
        "tasks": {task: task_accuracy(subject, task) for task in files if task != "long_text"}
    }
    prompts = [subject.prompt(record)[1] for record in subject.records("sentiment")][:100]
    report["sinks"] = {"sentiment prompts": sinks(subject, prompts)}
    report["perplexity"] = {}
    for length in (256, 512, 1024, 2048):
        texts = passages(subject, length)
        if length <= 1024:
            report["sinks"][f"text of {length}"] = sinks(subject, texts)
        masks = {
            "dense": causal(length - 1),
            "window 64": windowed(length - 1, 0, 64),
            "4 + window 60": windowed(length - 1, 4, 60),
        }
        report["perplexity"][str(length)] = {
            name: perplexity(subject, texts, mask) for name, mask in masks.items()
        }
    report["gamma"] = {task: gamma_probe(subject, task) for task in ("sentiment", "topic")}
    report["emphasis"] = emphasis_probe(subject)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = evaluate(arguments.model)
    text = json.dumps(report, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
