"""What eviction costs in quality: recall and perplexity of heed-tiny against the share of keys kept.

    python benchmarks/eviction.py                   # tables; a quarter of an hour on one core
    python benchmarks/eviction.py --plot docs/eviction.svg --json FILE

Offline, by the float32 reference that the server is compared with in the tests: one pass over each
prompt, then one over prompt and what follows for each method and share. Recall: `recall_long` items
whose last question comes after the eviction, as a continuation; right is an answer that is the greedy
one to its end. (In a prompt that ends with the question the answer's first token, nearly all of it
here, would come from the full cache.) Perplexity: of the tokens that follow a prompt of held-out text,
from the second on, as the first one is not affected. All methods protect the first SINKS and the last
WINDOW tokens, so that they differ in what they choose; `random` does so too.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plot

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reference"))
import eviction_definition
from eviction_events import Eviction, Observed
from reference_parameters import with_defaults
from transformers_reference import Reference, load

from heed_server.models import bundled_model

SINKS, WINDOW = 4, 32
SHARES = (0.15, 0.25, 0.4, 0.6, 0.8)
PROMPT, CONTINUATION = 448, 64
WINDOWED = {"window": WINDOW}
FIELDS: dict[str, dict[str, Any]] = {
    "snapkv": WINDOWED,
    "pyramidkv": WINDOWED,
    "adakv": WINDOWED,
    "task_kv": WINDOWED,
    "tappa": WINDOWED,
    "h2o": {},
    "tova": {},
    "expected_attention": {},
    "keydiff": {},
    "knorm": {},
}


@dataclass(frozen=True)
class Item:
    """A prompt and what is to follow it, in token ids; the last `measured` of that are looked at."""

    prompt: list[int]
    after: list[int]
    measured: int


@dataclass(frozen=True)
class Table:
    """[method][share]; `full`: with the full cache."""

    full: float
    values: dict[str, list[float]]


def main() -> None:
    options = _options()
    bundled = bundled_model("heed-tiny")
    if bundled is None:
        raise SystemExit("heed-tiny is not installed")
    reference = load(str(bundled.directory))
    recall = list(_recall_items(bundled, options.items, options.longest))
    texts = list(_text_items(bundled, options.texts))
    tables = {
        "recall": _measured(reference, recall, _right, np.mean),
        "perplexity": _measured(
            reference, texts, _loss, lambda losses: math.exp(float(np.mean(losses)))
        ),
    }
    print(f"{len(recall)} recall items, {len(texts)} texts of {PROMPT} + {CONTINUATION} tokens\n")
    for name, table in tables.items():
        print(_markdown(name, table, ".2f" if name == "recall" else ".1f"))
    if options.json:
        found = {name: vars(table) for name, table in tables.items()}
        options.json.write_text(json.dumps({"shares": SHARES, **found}, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(_plot(tables))


def _plot(tables: Mapping[str, Table]) -> str:
    recall, texts = tables["recall"], tables["perplexity"]
    heights = [texts.full, *(value for line in texts.values.values() for value in line)]
    whole = range(math.floor(min(heights)), math.ceil(max(heights)) + 1)
    panels = [
        plot.Panel("recall", "exact answers", recall.values, recall.full, (0, 0.25, 0.5, 0.75, 1)),
        plot.Panel("perplexity", "of the text that follows", texts.values, texts.full, whole),
    ]
    return plot.svg(SHARES, panels, "share of the prompt's keys kept")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=80)
    parser.add_argument("--longest", type=int, default=500, help="tokens of a recall item")
    parser.add_argument("--texts", type=int, default=26)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def _recall_items(bundled: Any, count: int, longest: int) -> Iterator[Item]:
    tokenizer = _tokenizer(bundled)

    def ids(chat: list[dict[str, str]], **options: Any) -> list[int]:
        text = tokenizer.apply_chat_template(chat, tokenize=False, **options)
        encoded: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return encoded

    found = 0
    for line in (bundled.evaluation / "recall_long.jsonl").read_text().splitlines():
        raw = json.loads(line)
        asked = ids(raw["messages"], add_generation_prompt=True)
        whole = ids([*raw["messages"], {"role": "assistant", "content": raw["answer"]}])
        context = ids(raw["messages"][:-1]) if len(raw["messages"]) > 1 else []
        if not context or len(whole) > longest or found == count:
            continue
        found += 1
        yield Item(context, whole[len(context) :], len(whole) - len(asked))


def _text_items(bundled: Any, count: int) -> Iterator[Item]:
    tokenizer = _tokenizer(bundled)
    lines = (bundled.evaluation / "long_text.jsonl").read_text().splitlines()
    size, found = PROMPT + CONTINUATION, 0
    for line in lines:
        ids = tokenizer(json.loads(line)["text"]).input_ids
        for start in range(0, len(ids) - size + 1, size):
            if found == count:
                return
            found += 1
            piece = [tokenizer.bos_token_id, *ids[start : start + size - 1]]
            yield Item(piece[:PROMPT], piece[PROMPT:], CONTINUATION - 1)


def _tokenizer(bundled: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(bundled.directory))


Measure = Callable[[np.ndarray, Sequence[int]], list[float]]


def _right(logprobs: np.ndarray, answer: Sequence[int]) -> list[float]:
    """Whether greedy decoding gives the whole answer. logprobs: [answer, vocabulary]."""
    return [float((logprobs.argmax(-1) == np.array(answer)).all())]


def _loss(logprobs: np.ndarray, answer: Sequence[int]) -> list[float]:
    """Negative log-likelihoods in nats. logprobs: [tokens, vocabulary]."""
    return [-float(row[token]) for row, token in zip(logprobs, answer, strict=True)]


def _measured(
    reference: Reference,
    items: Sequence[Item],
    measure: Measure,
    summary: Callable[[list[float]], float],
) -> Table:
    names = [*FIELDS, "random"]
    full: list[float] = []
    by_name: dict[str, list[list[float]]] = {name: [[] for _ in SHARES] for name in names}
    for number, item in enumerate(items):
        seen = reference.observe(item.prompt)
        full += _scored(reference, item, (), measure)
        for name in names:
            for place, share in enumerate(SHARES):
                evictions = _eviction(name, share, seen, len(item.prompt), number)
                by_name[name][place] += _scored(reference, item, evictions, measure)
    values = {name: [summary(part) for part in parts] for name, parts in by_name.items()}
    return Table(summary(full), values)


def _scored(
    reference: Reference, item: Item, evictions: Sequence[Eviction], measure: Measure
) -> list[float]:
    rows = [*item.prompt, *item.after][:-1]
    ran = reference.run(rows, len(item.prompt), evictions=evictions)
    return measure(ran.logprobs[-item.measured :].numpy(), item.after[-item.measured :])


def _eviction(
    name: str, share: float, seen: Observed, prompt: int, seed: int
) -> Sequence[Eviction]:
    common = {"keep": share, "sinks": SINKS, "recent": WINDOW}
    if name == "random":
        return _at_random(with_defaults({"method": "knorm", **common}), seen, prompt, seed)
    edit = with_defaults({"method": name, **common, **FIELDS[name]})
    choice = eviction_definition.choose(edit, seen.layers, None, prompt, prompt, seen.mean_rotation)
    return [Eviction(prompt, choice.kept)] if choice else []


def _at_random(
    edit: Mapping[str, Any], seen: Observed, prompt: int, seed: int
) -> Sequence[Eviction]:
    """The same number of keys in every head, drawn for each by itself."""
    budget = eviction_definition.budget_of(edit, prompt, prompt)
    if budget is None:
        return []
    rng = np.random.default_rng(seed)
    kept = [
        [
            eviction_definition.best(rng.random(prompt), np.arange(prompt), budget.count, budget)
            for _ in range(layer.kv_heads)
        ]
        for layer in seen.layers
    ]
    return [Eviction(prompt, kept)]


def _markdown(title: str, table: Table, form: str) -> str:
    lines = [
        f"| {title} | " + " | ".join(f"{share:.0%}" for share in SHARES) + " | all |",
        "| --- |" + " --- |" * (len(SHARES) + 1),
    ]
    for name, values in table.values.items():
        row = " | ".join(format(value, form) for value in values)
        lines.append(f"| `{name}` | {row} | {table.full:{form}} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
