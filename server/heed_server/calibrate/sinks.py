"""`heed calibrate sinks`: how much attention each early key gets, per layer and head.

Gu et al., "When Attention Sink Emerges in Language Models", ICLR 2025, arXiv 2410.10781. With T tokens
of each sample, and rows and keys counted from 0,

    mean_k = sum over q >= k of a_qk / (T - k)        sink(k) = share of samples, layers and heads
                                                                with mean_k > epsilon

Attention kernels keep no weights, so this does not ask the server: it runs the model's files in
transformers, eager and in float32, one sample at a time.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heed_server.attention.measures import column_mean
from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.heat_map import heat_map
from heed_server.models import bundled_model
from heed_server.scoring.data import Item, read_items, task_file
from heed_server.whole_files import write_whole


def calibrate_sinks(options: argparse.Namespace) -> None:
    """Write `sinks.json` and `sinks.svg` to a directory, and say which heads have a sink.

    Raises:
        CalibrationError: no item is long enough, or the data or the model cannot be read.
    """
    items = read_items(options.data or task_file(options.task))[: options.limit]
    bundled = bundled_model(options.model)
    model = str(bundled.directory) if bundled else options.model
    samples = np.array(list(_column_means(model, items, options.tokens)))
    if not len(samples):
        raise CalibrationError(f"no item has {options.tokens} tokens")
    means = samples.mean(axis=0)
    sink = (samples > options.epsilon).mean(axis=(0, 1, 2))
    options.out.mkdir(parents=True, exist_ok=True)
    document = {
        "model": options.model,
        "samples": len(samples),
        "tokens": options.tokens,
        "epsilon": options.epsilon,
        "sink": np.round(sink, 4).tolist(),
        "column_mean": np.round(means, 4).tolist(),
    }
    write_whole(options.out / "sinks.json", json.dumps(document) + "\n")
    write_whole(options.out / "sinks.svg", heat_map(means))
    _tell(means, sink, options.epsilon, options.out)


def _column_means(model: str, items: Sequence[Item], tokens: int) -> Iterator[np.ndarray]:
    """float32 [layers, heads, keys] for each item that is long enough."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{model}: {error}") from error
    longest = getattr(network.config, "max_position_embeddings", tokens)
    if tokens > longest:
        raise CalibrationError(f"{model} has {longest} positions, fewer than {tokens} tokens")
    for item in items:
        ids = _token_ids(tokenizer, item)[:tokens]
        if len(ids) < tokens:
            continue
        with torch.inference_mode():
            layers = network(torch.tensor([ids]), output_attentions=True).attentions
        yield column_mean(torch.cat(layers).numpy().sum(axis=-2))


def _token_ids(tokenizer: Any, item: Item) -> list[int]:
    if item.prompt is not None:
        return list(tokenizer(item.prompt).input_ids)
    text = tokenizer.apply_chat_template(
        list(item.messages or ()), tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _tell(means: np.ndarray, sink: np.ndarray, epsilon: float, out: Path) -> None:
    first = means[:, :, 0]
    # The last keys are seen by few rows, so that a row's look at itself weighs much there.
    early = sink[1 : max(2, len(sink) // 2)]
    heads = [f"{layer}:{head}" for layer, head in np.argwhere(first > epsilon)]
    sys.stdout.write(
        f"key 0 has a mean weight above {epsilon:g} in {sink[0]:.1%} of samples, layers and heads; "
        f"of the other keys in the first half, key {1 + int(early.argmax())} has most: "
        f"{early.max():.1%}\n"
        f"heads (layer:head) whose mean over the samples is above: {', '.join(heads) or 'none'}\n"
        f"written to {out / 'sinks.json'} and {out / 'sinks.svg'}\n"
    )
