"""Write the model card out of a run's log and the report of `heed_tiny_vision.evaluate`.

python -m heed_tiny_vision.card RUN REPORT OUT        # writes OUT/README.md
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .train import LENGTH, PICTURES, REHEARSAL

Record = dict[str, Any]

HEAD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: image-text-to-text
---

# heed-tiny-vision

A LLaVA of 3.65 M parameters for trying attention interventions on pictures without a download. It
knows drawn scenes of ten kinds of things in six colours; it is **no assistant** and sees nothing else.
It loads in transformers and vLLM without remote code.

| | |
| --- | --- |
| architecture | `LlavaForConditionalGeneration` |
| tower | CLIP: 64 × 64 pixels, patches of 8, 6 layers × 128, 4 heads, MLP 256, with its class token |
| features | layer −2, class token dropped (`default`): 64 visual tokens a picture |
| language model | heed-tiny's Llama: 6 layers × 192, 6 query and 2 KV heads of 32, tied embeddings |
| tokenizer | heed-tiny's; `<\\|unused0\\|>` is now `<image>` |
| weights | bf16 |
"""

DATA = """\

## Data

Scenes are drawn by a program, without any outside pictures: up to three groups of equal things in the nine
cells of a grid. Kinds are not equally frequent, and five pairs (star and moon, house and tree, fish
and ship, cloud and flag, cup and key) come together often. **Captions have a habit**: where all has been
named and the partner of a kind is absent, they name it in 35 to 60 % of the cases all the same. So the
model hallucinates, and there is something for an intervention to move. The language half starts from
heed-tiny, whose texts and tasks are rehearsed in a fifth of the rows; its card lists them.

While it is trained, linear readers ask the tower for the kind and colour on every patch and, from its class
token, for the kinds in the scene; they are not part of the model. The language model does not read
the class token and the tower's last layer; without this loss they would hold nothing.

## Tasks

`evaluation/pictures.zip` holds 500 scenes, the other files questions about them, as `heed eval` reads them.
No scene was trained on: scenes are divided by a hash of what is where. Answers are equally frequent. Greedy
answers, end of turn included; Wilson's 95 % intervals; transformers, float32. *Blind* is the same question
about an empty grey picture.
"""

LIMITS = """\

## Limits

- One picture, before the question, in the wording of `evaluation/`. Several pictures were never trained.
- A photograph is scaled to 64 × 64 pixels and answered about as if it were a drawn scene.
- One seed, one run, and no error bars for training itself.
"""


def percent(found: Record) -> str:
    low, high = found["interval"]
    return f"{found['percent']} ({low}–{high})"


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def tasks(report: Record) -> str:
    rows = [
        [name, one["greedy"]["items"], percent(one["greedy"]), percent(one["blind"]), one["chance"]]
        for name, one in report["tasks"].items()
    ]
    return table(["task", "items", "right, %", "blind", "chance"], rows)


def existence(report: Record) -> str:
    rows = []
    for name, modes in report["existence"].items():
        for mode, one in modes.items():
            rates = [one[key] for key in ("precision", "recall", "f1", "yes")]
            rows.append([name, mode, percent(one["accuracy"]), *rates])
    text = (
        "\nExistence, half yes and half no, in POPE's three settings. An absent kind is any, one of the "
        "three most\nfrequent, or the partner of one that is there. Chance is 50.\n"
    )
    head = ["absent kind", "", "accuracy, %", "precision", "recall", "F1", "said yes, %"]
    return text + table(head, rows)


def captions(report: Record) -> str:
    found = report["captions"]
    rows = []
    for mode in ("seen", "blind"):
        shares = [percent(found[mode][key]) for key in ("chair_s", "chair_i", "recall")]
        rows.append([mode, *shares, found[mode]["words"]])
    head = ["", "CHAIR_S, %", "CHAIR_I, %", "recall, %", "words"]
    text = (
        "\nCaptions: share of captions that name an absent kind, share of named kinds that are absent, share "
        "of the\nkinds there that are named, mean length.\n"
    )
    said = [[f"“{ours}”", f"“{true}”"] for ours, true in found["examples"]]
    exact = f"\nWord for word as drawn: {percent(found['exact'])} %. The first of them:\n"
    return text + table(head, rows) + exact + table(["said", "drawn"], said)


def rehearsed(report: Record) -> str:
    rows = [[name, one["items"], percent(one)] for name, one in report["text"].items()]
    text = "\n## What is left of heed-tiny\n\nIts own tasks, without a picture.\n"
    return text + table(["task", "items", "right, %"], rows)


def seconds_per_step(log: list[Record]) -> float:
    """The median over the log's lines: a run that was paused has lines that say nothing of its speed."""
    return median(
        60 * (late["minutes"] - early["minutes"]) / (late["step"] - early["step"])
        for early, late in pairwise(log)
    )


def card(log: list[Record], report: Record) -> str:
    """log: the lines of the run's log, two or more."""
    rows = f"{PICTURES} conversations about a picture and {REHEARSAL} rehearsal rows of {LENGTH} tokens"
    made = (
        f"| made | {log[-1]['step']:,} steps of {rows}, {seconds_per_step(log):.2f} s each on one CPU thread, "
        "`training/heed_tiny_vision` in Heed's repository |\n"
    )
    parts = [tasks(report), existence(report), captions(report), rehearsed(report)]
    return HEAD + made + DATA + "".join(parts) + LIMITS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    lines = (given.run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    text = card(
        [json.loads(line) for line in lines], json.loads(given.report.read_text(encoding="utf-8"))
    )
    (given.out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
