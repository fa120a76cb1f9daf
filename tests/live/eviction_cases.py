"""Cases of the methods that evict, small enough for short prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from heed_interventions import METHODS

Edits = list[dict[str, Any]]
Case = Callable[[int], Edits]

EVICTION = [name for name, method in METHODS.items() if method.evicts]
P = 300
"""Tokens of the prompts that `edit` is for."""

WINDOW: dict[str, Any] = {"window": 4, "kernel": 3}


def edit(method: str, **fields: Any) -> dict[str, Any]:
    """An intervention that keeps 90 of 300 tokens, little of it protected."""
    small = {"task_kv": {"sinks": 2, "recent": 40}}.get(method, {})
    return {"method": method, "keep": 0.3, **small, **fields}


def case(method: str, *others: dict[str, Any], **fields: Any) -> Case:
    return lambda n: [{"method": method, "report": "full", **fields}, *others]


EVICTION_CASES: dict[str, Case] = {
    "snapkv": case("snapkv", keep=0.3, **WINDOW),
    "snapkv with sinks, recent tokens and maxima": case(
        "snapkv", keep=0.4, window=3, kernel=5, pooling="max", sinks=1, recent=4
    ),
    "h2o": case("h2o", keep=0.3),
    "h2o in the prompt only": case("h2o", keep=0.25, recent=2, decode=False),
    "tova": case("tova", keep=0.3),
    "tova in the prompt only": case("tova", keep=0.3, sinks=1, decode=False),
    "pyramidkv": case("pyramidkv", keep=0.3, **WINDOW),
    "adakv": case("adakv", keep=0.3, **WINDOW),
    "adakv without a floor": case("adakv", keep=0.3, floor=0, sinks=1, **WINDOW),
    "keydiff": case("keydiff", keep=0.4, sinks=1),
    "knorm": case("knorm", keep=0.4, recent=2),
    "expected attention": case("expected_attention", keep=0.4),
    "expected attention by the mean alone": case(
        "expected_attention", keep=0.4, sinks=1, use_covariance=False, n_future_positions=20
    ),
    "task kv": case("task_kv", keep=0.7, sinks=1, recent=4, t=16, **WINDOW),
    "task kv beyond its budget": case("task_kv", keep=0.3, sinks=1, recent=4, **WINDOW),
    "tappa": case("tappa", keep=0.3, **WINDOW),
    "tappa with the weights' entropy": case("tappa", keep=0.3, alpha=2, **WINDOW),
    "snapkv beside others": case(
        "snapkv",
        {"method": "zerotuning", "gamma": 3},
        {"method": "head_gain", "gain": 1.5, "rows": "generated"},
        {"method": "locore", "beta": 0.8, "window": 4},
        {"method": "attention_scale", "q_scale": 1.3, "heads": [0, 5]},
        keep=0.4,
        sinks=1,
        **WINDOW,
    ),
}

READ_NO_HIT = {name for name in EVICTION_CASES if name.startswith(("h2o", "expected"))}
"""Cases that score every row of the prompt, so that nothing comes out of the prefix cache."""
