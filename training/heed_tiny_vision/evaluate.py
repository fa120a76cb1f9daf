"""Measure an exported heed-tiny-vision: tasks, captions, existence, with a blind twin beside each.

    python -m heed_tiny_vision.evaluate MODEL HEED_TINY [--json FILE] [--most 100]

Reads MODEL/evaluation/*.jsonl, and HEED_TINY/evaluation for the tasks without a picture. Everything
runs in transformers, greedy, in float32. "Blind" is the same question about an empty grey picture:
what the words alone give away.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from heed_tiny.evaluate import share
from heed_tiny.evaluation_sets import SIZES as TEXT_TASKS

from . import evaluation_sets, hallucination, questions
from .model import normalise
from .pictures import render

TASKS = ("colour", "count", "place")
CAPTION_TOKENS, ANSWER_TOKENS = 48, 8
AT_ONCE = 50  # pictures
GREY = 80

Record = dict[str, Any]


def scene_of(record: Record) -> int:
    """The number of the scene that a question is about."""
    return int(Path(record["image"]).stem)


class Subject:
    """The exported model under measurement. most: how many records of each file are used."""

    def __init__(self, directory: Path, most: int | None = None) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        self.evaluation, self.most = directory / "evaluation", most
        self.scenes = evaluation_sets.sampled()
        self.pictures = [render(scene) for scene in self.scenes]

    def lines(self, name: str) -> Iterator[Record]:
        for line in (self.evaluation / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            yield json.loads(line)

    def records(self, name: str) -> list[Record]:
        return list(self.lines(name))[: self.most]

    def prompt(self, question: str) -> list[int]:
        """The tokens of a question about one picture, the image token repeated for its patches."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        image, patches = self.model.config.image_token_index, self.model.config.image_seq_length
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [copy for token in ids for copy in [token] * (patches if token == image else 1)]

    @torch.no_grad()
    def answers(self, records: list[Record], tokens: int, blind: bool = False) -> list[str]:
        """The greedy answer to every record. tokens: most that are generated.

        Prompts of one length run together, so that nothing is padded.
        """
        prompts = [self.prompt(record["question"]) for record in records]
        said = [""] * len(records)
        order = sorted(range(len(records)), key=lambda number: len(prompts[number]))
        for _, group in groupby(order, key=lambda number: len(prompts[number])):
            alike = list(group)
            for start in range(0, len(alike), AT_ONCE):
                chosen = alike[start : start + AT_ONCE]
                images = self._pictures([scene_of(records[number]) for number in chosen], blind)
                ids = torch.tensor([prompts[number] for number in chosen])
                made = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=normalise(images),
                    max_new_tokens=tokens,
                    do_sample=False,
                )
                texts = self.tokenizer.batch_decode(
                    made[:, ids.shape[1] :], skip_special_tokens=True
                )
                for number, text in zip(chosen, texts, strict=True):
                    said[number] = text
        return said

    def _pictures(self, numbers: list[int], blind: bool) -> NDArray[np.uint8]:
        pictures = np.stack([self.pictures[number] for number in numbers])
        return np.full_like(pictures, GREY) if blind else pictures


def task_accuracy(subject: Subject, task: str) -> Record:
    """Exact greedy answers; the answers are equally frequent, so chance is one of the choices."""
    records = subject.records(task)
    found: Record = {"chance": round(100 / len({record["answer"] for record in records}), 1)}
    for name, blind in (("greedy", False), ("blind", True)):
        said = subject.answers(records, ANSWER_TOKENS, blind)
        right = sum(s == r["answer"] for s, r in zip(said, records, strict=True))
        found[name] = share(right, len(records))
    return found


def existence(subject: Subject, name: str) -> Record:
    records = subject.records(f"existence_{name}")
    true = [record["answer"] for record in records]
    return {
        mode: hallucination.pope(subject.answers(records, ANSWER_TOKENS, blind), true)
        for mode, blind in (("seen", False), ("blind", True))
    }


def captions(subject: Subject) -> Record:
    """CHAIR-like measures; `examples` are the first captions, with what is there."""
    records = subject.records("caption")
    kinds = [record["objects"] for record in records]
    true = [questions.caption(subject.scenes[scene_of(record)]) for record in records]
    said = subject.answers(records, CAPTION_TOKENS)
    blind = subject.answers(records, CAPTION_TOKENS, blind=True)
    return {
        "seen": hallucination.chair(said, kinds),
        "blind": hallucination.chair(blind, kinds),
        "exact": share(
            sum(ours == there for ours, there in zip(said, true, strict=True)), len(said)
        ),
        "examples": [list(pair) for pair in zip(said[:8], true, strict=False)],
    }


@torch.no_grad()
def text_accuracy(subject: Subject, evaluation: Path, most: int = 100) -> dict[str, Record]:
    """What is left of heed-tiny's own tasks: exact greedy answers, without a picture.

    evaluation: heed-tiny's directory of evaluation sets.
    """
    found = {}
    for task in TEXT_TASKS:
        lines = (evaluation / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:most]
        right = 0
        for record in map(json.loads, lines):
            text = subject.tokenizer.apply_chat_template(
                record["messages"], tokenize=False, add_generation_prompt=True
            )
            prompt, answer = (
                subject.tokenizer(part, add_special_tokens=False)["input_ids"]
                for part in (text, record["answer"])
            )
            answer.append(subject.tokenizer.eos_token_id)
            logits = subject.model(input_ids=torch.tensor([prompt + answer[:-1]])).logits[0]
            right += logits[-len(answer) :].argmax(dim=-1).tolist() == answer
        found[task] = share(right, len(lines))
    return found


def evaluate(directory: Path, heed_tiny: Path, most: int | None = None) -> Record:
    subject = Subject(directory, most)
    return {
        "tasks": {task: task_accuracy(subject, task) for task in TASKS},
        "existence": {name: existence(subject, name) for name in questions.ABSENT},
        "captions": captions(subject),
        "text": text_accuracy(subject, heed_tiny / "evaluation", most or 100),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("heed_tiny", type=Path, help="the exported text model, for its tasks")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--most", type=int, help="use only so many records of each file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps(evaluate(given.model, given.heed_tiny, given.most), indent=1)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
